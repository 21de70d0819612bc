package offline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover/draft"
)

// Raw is data to be written at an offset of the disk, in whole sectors. The Raws of one job
// do not overlap: each has the final content of its range.
type Raw struct {
	Off  int64 // bytes
	Data []byte
}

// Job is what is to be done to a disk.
type Job struct {
	Identity Identity
	Type     string // of the file system, for mount(2)
	Options  string // likewise
	// Raw is written before anything mounts the disk.
	Raw []Raw
	// Free is data for blocks that no file has. It is written before all else, to the disk itself instead
	// of with Raw, and changes nothing on the disk but such blocks. It is allowed only without a guest.
	Free []draft.Free
	// Check asks for the file system to be checked and repaired after Raw is written. Only
	// the ext family supports it.
	Check bool
	// Names returns the dead kernel's names of the inodes that a check has found without a
	// name, or with too many. It is needed only with Check.
	Names func(found *wire.Check) wire.NameRequest
	// Size is how many bytes of staging Gather fills.
	Size   int64
	Gather func([]byte) error
	// Files are the files to be written by file handle; Gather fills in the staged bytes of
	// their runs.
	Files []wire.File
	// Attrs is metadata for some of these files.
	Attrs []wire.Attr
	// Refused says that some data of the memory was refused, and is not in the job.
	Refused bool
	// Super are the regions of the disk that hold its superblock. While the disk is in
	// between, they do not hold one, so that it has no file system. There is at least one.
	Super []Region
}

// Result says what a job has done. All of it is on the disk.
type Result struct {
	Applied wire.ApplyResult
	Check   *wire.Check // nil if none was asked for
	Named   wire.NameResult
	Stages  []Stage
	Lacks   string // why the memory of an interrupted commit is still needed after the commit was finished; empty if it is not
}

// left returns what was to be done with the file system mounted and was not, and the number of
// further failures that the guest's answer had no room for.
func (r *Result) left() (failures []wire.Failure, more int) {
	more = r.Named.MoreFailures + r.Applied.MoreFailures
	if r.Check != nil {
		more += r.Check.More
	}
	return slices.Concat(r.Named.Failures, r.Named.Left(r.Applied.Failures)), more
}

// Stage is a step of the work, and how long it took.
type Stage struct {
	Name string
	Took time.Duration
}

func (r *Result) stage(name string, work func() error) error {
	start := time.Now()
	err := work()
	r.Stages = append(r.Stages, Stage{Name: name, Took: time.Since(start)})
	return err
}

// NeedsGuest reports whether the job needs the file system to be mounted or checked.
func (j *Job) NeedsGuest() bool { return j.Check || len(j.Files)+len(j.Attrs) > 0 }

// Apply carries out a job. If it fails before the commit, the disk is unchanged, except for the
// blocks of Job.Free, and the work directory is removed. If guest is nil, the job must not need one.
func (d *Disk) Apply(ctx context.Context, j Job, guest *Guest) (*Result, error) {
	if id, unfinished := d.Unfinished(); unfinished && !d.Other() {
		return nil, d.unfinished(id)
	} else if unfinished && id.Sum == j.Identity.Sum {
		return nil, d.another()
	}
	if err := d.clear(j.Identity); err != nil {
		return nil, err
	}
	r := &Result{}
	if err := d.prepare(ctx, j, guest, r); err != nil {
		return nil, errors.Join(err, d.remove())
	}
	return r, d.finish(ctx, r)
}

func (d *Disk) unfinished(id Identity) error {
	return hint.New("disk "+d.path, inBetween{fmt.Errorf("a commit to it was broken off, and it is partly written: the commit was from %s, Linux %s", id.Image, id.Kernel)},
		"Finish that first: apply the same image again, or, without it: understudy salvage apply --finish --disk "+d.path+".")
}

// prepare makes and fills the overlay, or the redo file if guest is nil, and makes
// everything durable that a commit needs.
func (d *Disk) prepare(ctx context.Context, j Job, guest *Guest, r *Result) error {
	before, err := d.read(j.Super)
	if err != nil {
		return err
	}
	d.left = &record{Step: stepApply, Identity: j.Identity, Disk: d.path, Size: d.Size, Veil: veilOf(j.Identity), Before: before, Refused: &j.Refused}
	if guest == nil {
		if j.NeedsGuest() {
			return errors.New("no guest for a job that needs one")
		}
		return r.stage("write redo", func() error { return d.prepareRedo(ctx, j) })
	}
	if len(j.Free) > 0 {
		return errors.New("a job that writes to free blocks cannot run in a guest")
	}
	if err := d.left.write(d.work); err != nil {
		return err
	}
	if err := d.makeOverlay(ctx); err != nil {
		return err
	}
	if err := d.run(ctx, j, *guest, r); err != nil {
		return err
	}
	failures, more := r.left()
	d.left.Refused = new(j.Refused || len(failures)+more > 0)
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx) // nothing was lost yet; from here on it goes through
	}
	return r.stage("seal overlay", func() error { return d.makeReady(ctx) })
}

// prepareRedo makes everything durable that a commit without an overlay needs: the redo file,
// and the data for free blocks. Neither is used without the other, and either may be left
// behind without harm, so they are written at the same time.
func (d *Disk) prepareRedo(ctx context.Context, j Job) error {
	redo := d.veiledRaw(j.Raw)
	if err := errors.Join(d.roomFor(rawBytes(redo)+freeBytes(j.Free)), d.checkFree(j), context.Cause(ctx)); err != nil {
		return err
	}
	f, list, err := d.newRedo(redo)
	if err != nil {
		return err
	}
	var both errgroup.Group
	both.Go(func() error { return d.makeRedo(f, redo, list) })
	both.Go(func() error { return d.writeFree(j.Free) })
	if err := both.Wait(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	d.left.Step = stepCommit
	return d.left.write(d.work)
}

// makeReady makes everything durable that a commit of the overlay needs.
func (d *Disk) makeReady(ctx context.Context) (err error) {
	if err := errors.Join(d.room(), d.seal(ctx)); err != nil {
		return err
	}
	if d.left.After, err = d.look(ctx, d.left.Before); err != nil {
		return err
	}
	if err := d.cover(ctx, d.left.veil()); err != nil {
		return err
	}
	d.left.Step = stepCommit
	return d.left.write(d.work)
}

// finish commits the overlay or the redo file even if ctx has ended: a disk should not stay
// in between for long. Each of its steps may have been done before, and is then done again.
func (d *Disk) finish(ctx context.Context, r *Result) error {
	ctx = context.WithoutCancel(ctx)
	err := r.stage("commit", func() error {
		if err := d.put(d.left.veil()); err != nil {
			return err
		}
		d.left.Step = stepVeiled
		if err := d.left.write(d.work); err != nil {
			return err
		}
		if err := d.carryOver(ctx); err != nil {
			return err
		}
		return d.put(d.left.After)
	})
	if err != nil {
		return hint.New("commit to "+d.path, inBetween{err}, "The disk is partly written. Remove the cause and run the same command again: it goes on where this one stopped.")
	}
	return d.done()
}

// carryOver writes all but the superblock to the disk, durably.
func (d *Disk) carryOver(ctx context.Context) error {
	if d.left.Redo != nil {
		return d.redoAll()
	}
	return d.commit(ctx)
}

// done removes what the commit needed, and its record first: without the record, the rest is
// of no use to another run.
func (d *Disk) done() error {
	if err := os.Remove(filepath.Join(d.work, recordName)); err != nil {
		return fmt.Errorf("remove record: %w", err)
	}
	return errors.Join(syncDir(d.work), d.remove())
}

// Finish completes the interrupted commit of an earlier run with the same Identity.Sum. The
// disk must be as that run left it.
func (d *Disk) Finish(ctx context.Context, id Identity) (*Result, error) {
	left, unfinished := d.Unfinished()
	if !unfinished {
		return nil, errors.New("finish commit: none was broken off")
	}
	if d.Other() {
		return nil, d.another()
	}
	if left.Sum != id.Sum {
		return nil, d.unfinished(left)
	}
	if d.left.Size != d.Size {
		return nil, d.changed(fmt.Errorf("it has %d bytes, and had %d", d.Size, d.left.Size))
	}
	now, err := d.read(d.left.Before)
	if err != nil {
		return nil, err
	}
	r := &Result{Lacks: d.left.lacks()}
	if veils := d.left.veil(); !same(now, veils) && same(now, d.left.After) {
		return r, d.done() // the commit was complete, except for this
	} else if err := between(now, veils, d.left); err != nil {
		return nil, d.changed(err)
	}
	from := d.overlay()
	if d.left.Redo != nil {
		from = d.redo()
	}
	if _, err := os.Stat(from); err != nil {
		return nil, d.changed(fmt.Errorf("what was to be committed is gone: %w", err))
	}
	return r, d.finish(ctx, r)
}

func same(a, b []Region) bool {
	return slices.EqualFunc(a, b, func(a, b Region) bool { return bytes.Equal(a.Data, b.Data) })
}

// between checks that each sector of the superblock is known, and that not all of them have
// their old content: a veil was there.
func between(now, veils []Region, r *record) error {
	if err := known(now, veils, r); err != nil {
		return err
	}
	if same(now, r.Before) {
		return errors.New("it has its old superblock back")
	}
	return nil
}

// known checks that each sector of the superblock has the veil, its old content or its new content.
func known(now, veils []Region, r *record) error {
	for i, g := range now {
		for at := 0; at < len(g.Data); at += sector {
			is := func(other Region) bool { return bytes.Equal(g.Data[at:at+sector], other.Data[at:at+sector]) }
			if !is(veils[i]) && !is(r.Before[i]) && !is(r.After[i]) {
				return fmt.Errorf("its superblock, at %d, is neither the old one nor the new one", g.Off+int64(at))
			}
		}
	}
	return nil
}

func (d *Disk) changed(err error) error {
	return hint.New("disk "+d.path, inBetween{fmt.Errorf("it was written to since a commit to it was broken off: %w", err)},
		"It cannot be finished, and what it has now is not to be relied on: restore it to what it was, then remove "+d.work+" and apply again.")
}

// another says that an interrupted commit was to another disk that had this one's name.
func (d *Disk) another() error {
	now, err := d.read(d.left.Before)
	if err == nil {
		err = known(now, d.left.veil(), d.left)
	}
	return hint.New("disk "+d.path, inBetween{fmt.Errorf("a commit from this memory to a disk of this name was broken off, and this is another disk, or it was restored or used since: %w", err)},
		"Keep "+d.work+": it may be all that can finish the disk that is partly written. If that has another name now, finish it by that name: understudy salvage apply --finish --work "+filepath.Dir(d.work)+" --disk DISK. If there is no such disk, since it was restored, say, move that directory elsewhere and apply again.")
}

// read reads regions of the disk.
func (d *Disk) read(regions []Region) ([]Region, error) {
	var out []Region
	for _, g := range regions {
		b := make([]byte, len(g.Data))
		if _, err := d.ReadAt(b, g.Off); err != nil {
			return nil, fmt.Errorf("read superblock: %w", err)
		}
		out = append(out, Region{Off: g.Off, Data: b})
	}
	return out, nil
}
