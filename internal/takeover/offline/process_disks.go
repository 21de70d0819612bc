package offline

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/live/hint"
)

// finish brings up to date the disks of a machine that has ended.
func (a *Adoption) finish(ctx context.Context, c *custody) (*Adopted, error) {
	out := c.adopted()
	if err := a.apply(ctx, c, out); err != nil {
		return out, err
	}
	if out.Complete() {
		out.Memory = ""
		if err := os.Remove(c.Memory); err != nil && !errors.Is(err, os.ErrNotExist) { // an earlier run may have removed it
			return out, err
		}
	}
	if a.Record != "" {
		return out, os.Remove(a.Record)
	}
	return out, nil
}

// apply brings each file system up to date. If one of them fails, it goes on with the others.
// All disks are claimed first, so that nobody can start the machine again meanwhile.
func (a *Adoption) apply(ctx context.Context, c *custody, out *Adopted) (err error) {
	claims := make(map[string]*hold)
	defer func() {
		for _, held := range claims {
			err = errors.Join(err, held.Close())
		}
	}()
	for _, p := range c.Places {
		if _, done := c.done(p); done || claims[p.Path] != nil {
			continue
		}
		claim, err := c.source(p.Path).take(p.Path)
		if err != nil {
			return c.keep(p, err)
		}
		claims[p.Path] = claim
	}
	run := a.run
	if run == nil {
		run = Run
	}
	var errs []error
	changed := 0
	for _, p := range c.Places {
		if d, done := c.done(p); done {
			out.Reports = append(out.Reports, c.report(d))
			continue
		}
		o := a.Options
		o.Source = c.source(p.Path)
		o.Image, o.Disk, o.Where, o.held = c.Memory, p.Path, p.Where, claims[p.Path]
		var r *Report
		if o.Work, err = a.workFor(p.Path); err == nil {
			r, err = run(ctx, o)
		}
		if err == nil {
			out.Reports = append(out.Reports, r)
			err = a.done(c, p, r)
		}
		if errors.Is(err, salvage.ErrDiskChanged) {
			changed++
		}
		if err != nil {
			errs = append(errs, c.keep(p, err))
		}
	}
	c.changed = changed > 0 && changed == len(errs)
	return errors.Join(errs...)
}

// done records that a disk is up to date, so that it is left alone if another one has to be tried again. One whose last
// commit is refused is tried again, too.
func (a *Adoption) done(c *custody, p Place, r *Report) error {
	if a.Record == "" || r.Untouched {
		return nil
	}
	c.Done = append(c.Done, doneDisk{p, r.Complete})
	return c.write(a.Record)
}

// workFor returns Options.Work for a disk: that of a block device is where the memory is, for which there was room.
func (a *Adoption) workFor(disk string) (string, error) {
	if a.Work != "" {
		return a.Work, nil
	}
	return besideOr(disk, filepath.Dir(a.Memory))
}

// outlasts checks the directories of all work before the process is ended.
func (a *Adoption) outlasts(places []Place) error {
	for _, p := range places {
		work, err := a.workFor(p.Path)
		if err == nil && work != "" {
			err = outlasts(work, p.Path)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// keep adds to an error what to do about a disk that was not brought up to date.
func (c *custody) keep(p Place, err error) error {
	return hint.New("bring "+p.String()+" up to date", err, "Its machine's memory is in "+c.Memory+": keep it, and go on with understudy salvage apply "+c.Memory+" --disk "+p.argument()+".")
}
