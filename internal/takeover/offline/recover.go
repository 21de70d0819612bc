package offline

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// ErrNotMounted means that a memory has nothing for a disk: its kernel did not have the
// file system mounted.
var ErrNotMounted = errors.New("not mounted by the dead kernel")

// RecoverOptions say how a pair's disks are brought up to date.
type RecoverOptions struct {
	Guest string // as in Options
	Work  string // likewise; empty means WorkOf, which for a block device is the pair's own directory
	// GiveUp is as in Options; without it a disk whose last commit is refused stays as it is, and is
	// tried again by the next call.
	GiveUp bool
	// Devices maps the names of disks to the paths of devices that have their file systems, to be
	// used instead of the disks' images: a disk with layers needs one.
	Devices map[string]string
}

// Recover brings to the disks of a pair, and to the root disks of its partitions, the data that only the memory
// in its run directory has. It returns a report for each memory that was applied to a disk. After an error, these
// are the reports until then, and Recover can be called again. If something was refused, the run directory stays
// at stake; so it does if a root disk could not be brought up to date, whose memory is then recorded as kept.
func Recover(ctx context.Context, d *supervisor.RunDir, o RecoverOptions) ([]*Report, error) {
	if d.Record == nil {
		return nil, nil
	}
	r := recovery{dir: d, record: *d.Record, options: o, run: Run, rescue: RescueRoot}
	for name := range o.Devices {
		if !slices.ContainsFunc(r.record.Disks, func(d supervisor.RecordDisk) bool { return d.Name == name }) {
			return nil, fmt.Errorf("the pair has no disk %s", name)
		}
	}
	r.record.Disks = slices.Clone(d.Record.Disks)
	err := r.all(ctx)
	return r.reports, err
}

// all brings all disks up to date. An error of a shared disk does not keep it from the root disks.
func (r *recovery) all(ctx context.Context) error {
	complete, err := true, error(nil)
	if !r.record.Saved {
		complete, err = r.disks(ctx)
	}
	lacking, failed := r.roots(ctx)
	if err == nil && failed == nil && complete && !r.record.Saved {
		r.record.Saved = true
		err = r.dir.Write(&r.record)
	}
	return errors.Join(err, failed, lacking)
}

// disks brings the shared disks up to date, and reports whether they now have everything that was in memory.
func (r *recovery) disks(ctx context.Context) (complete bool, err error) {
	untouched := false
	for i := range r.record.Disks {
		err := r.disk(ctx, &r.record.Disks[i])
		if errors.Is(err, errUntouched) {
			untouched = true
			continue
		}
		if err != nil {
			return false, fmt.Errorf("recover disk %s: %w", r.record.Disks[i].Name, err)
		}
	}
	return !untouched && !slices.ContainsFunc(r.record.Disks, func(d supervisor.RecordDisk) bool { return d.Lacks() }), nil
}

// roots brings the root disks up to date. lacking says why some are recorded as not up to date; err is why
// this is not known, or could not be recorded.
func (r *recovery) roots(ctx context.Context) (lacking, err error) {
	all, err := r.dir.LackingRoots()
	for _, p := range all {
		work := r.options.Work
		if work == "" {
			if work, err = WorkOf(r.record.Pair, p.Root); err != nil {
				return lacking, err
			}
		}
		reports, failed := r.rescue(ctx, Options{
			Image: r.dir.RAM(p.Name), Disk: p.Root, Guest: r.options.Guest, Work: work, GiveUp: r.options.GiveUp, Forget: true,
		})
		if ctx.Err() != nil {
			return lacking, errors.Join(failed, context.Cause(ctx))
		}
		r.reports = append(r.reports, reports...)
		if failed != nil {
			lacking = errors.Join(lacking, fmt.Errorf("root disk of partition %s: %w", p.Name, failed))
		}
		for _, report := range reports {
			switch {
			case report.Untouched: // another try may give up its last commit
				failed = errors.Join(failed, errUntouched)
			case !report.Complete: // RootLacks treats ErrPartly separately
				failed = errors.Join(failed, supervisor.ErrPartly)
			}
		}
		if failed != nil {
			r.dir.RootLacks(&r.record, p, failed)
		} else {
			r.dir.RootHas(&r.record, p)
		}
		if err := r.dir.Write(&r.record); err != nil {
			return lacking, err
		}
	}
	return lacking, err
}

// errUntouched means that nothing more is done to a disk now, because its last commit is refused.
var errUntouched = errors.New("the last commit is refused, and nothing was written")

type recovery struct {
	dir     *supervisor.RunDir
	record  supervisor.Record // as it is to be written
	options RecoverOptions
	run     func(context.Context, Options) (*Report, error)
	rescue  func(context.Context, Options) ([]*Report, error)
	reports []*Report
}

// Values of a disk's progress in addition to those of a takeover.
const (
	heirSaved takeover.Progress = "understudy saved" // as HandedOver, and the understudy's own data is on the disk
	saved     takeover.Progress = "saved"            // all data is on the disk
)

// disk applies the memories that have data which a disk lacks. A kernel that took the disk
// over has a journal and unsaved data of its own. These are applied first: the disk is then
// as left by a kernel that has written a part of the plan.
func (r *recovery) disk(ctx context.Context, d *supervisor.RecordDisk) error {
	active, heir := r.dir.RAM(r.record.Active), r.dir.RAM(r.record.Heir)
	switch d.Progress {
	case "", takeover.Fenced, takeover.HandedOver:
		if d.Refused == nil { // the takeover had not come to refuse anything yet
			d.Refused = new(bool)
		}
	}
	if len(d.Layers) > 0 && d.Progress != saved && r.options.Devices[d.Name] == "" {
		if err := seen(d); err != nil {
			return layered(d, err)
		}
	}
	switch d.Progress {
	case saved:
		return nil
	case takeover.Applied:
		return r.apply(ctx, d, Options{Image: heir}, saved)
	case takeover.Given:
		err := r.apply(ctx, d, Options{Image: heir}, saved)
		if !errors.Is(err, ErrNotMounted) {
			return err
		}
		// The understudy died before it mounted the disk, which is as the active side left it.
		if err = r.applyIfMounted(ctx, d, active); errors.Is(err, salvage.ErrDiskChanged) {
			return nil // the disk has changed after all, and what was refused stays refused
		}
		return err
	case takeover.HandedOver:
		err := r.apply(ctx, d, Options{Image: heir, print: true}, heirSaved)
		var none *notMounted
		if errors.As(err, &none) { // it died before the mount, and the disk may have been checked for that
			err = r.applyIfMounted(ctx, d, active)
			if errors.Is(err, salvage.ErrDiskChanged) && !none.died.IsZero() {
				err = r.apply(ctx, d, Options{Image: active, handedOver: &handOver{died: none.died}}, saved)
			}
			return err
		}
		if err != nil {
			return err
		}
		fallthrough
	case heirSaved:
		return r.apply(ctx, d, Options{Image: active, handedOver: &handOver{super: d.Super}}, saved)
	}
	return r.applyIfMounted(ctx, d, active)
}

// applyIfMounted applies the memory of a kernel that may have died before it mounted the
// disk. All of it is applied: what a takeover had refused of it no longer counts.
func (r *recovery) applyIfMounted(ctx context.Context, d *supervisor.RecordDisk, image string) error {
	before := d.Refused
	d.Refused = new(bool)
	err := r.apply(ctx, d, Options{Image: image}, saved)
	if err != nil && !d.Lacks() {
		d.Refused = before
	}
	var none *notMounted
	if errors.As(err, &none) {
		return r.lacksNothing(d, none)
	}
	return err
}

// lacksNothing returns nil if a disk that no kernel of the pair had mounted is the pair's disk, and was unmounted.
func (r *recovery) lacksNothing(d *supervisor.RecordDisk, none *notMounted) error {
	why := none.unclean
	switch {
	case d.UUID == "":
		why = errors.New("the record of the pair does not say which file system its disk has")
	case d.UUID != none.uuid:
		why = fmt.Errorf("the disk of the pair has file system %s", d.UUID)
	case why == nil:
		return nil
	}
	return hint.New("tell whether the disk lacks something", fmt.Errorf("%w; %w", none, why),
		"Restore the disk of the pair, or name it (understudy recover --disk "+d.Name+"=DEVICE), and recover again: the memory stays until then. If the disk lacks nothing, or to give it up: understudy down --discard "+r.record.Pair+".")
}

// apply applies one memory, and records durably that it did.
func (r *recovery) apply(ctx context.Context, d *supervisor.RecordDisk, o Options, done takeover.Progress) error {
	o, err := r.on(d, o)
	if err != nil {
		return err
	}
	report, err := r.run(ctx, o)
	if err == nil || report != nil && !report.Complete {
		r.reports = append(r.reports, report)
	}
	if err != nil {
		return fmt.Errorf("from %s: %w", o.Image, err)
	}
	if report.Untouched {
		return errUntouched
	}
	if !report.Complete {
		d.Refused = new(true)
	}
	d.Progress, d.Super = done, report.print
	return r.dir.Write(&r.record)
}

// on sets the options for a run on a disk of the pair.
func (r *recovery) on(d *supervisor.RecordDisk, o Options) (_ Options, err error) {
	o.Disk, o.Where, o.Guest, o.Work, o.GiveUp, o.Raw = d.Image, whereOf(d), r.options.Guest, r.options.Work, r.options.GiveUp, true
	if device := r.options.Devices[d.Name]; device != "" {
		o.Disk, o.Where = device, disk.Where{}
	}
	if o.Work == "" {
		o.Work, err = WorkOf(r.record.Pair, o.Disk)
	}
	return o, err
}

// whereOf returns the part of the image that has the file system.
func whereOf(d *supervisor.RecordDisk) disk.Where {
	if d.Volume != "" {
		return disk.Where{Volume: d.Volume}
	}
	return disk.Where{Part: d.Part}
}

// seen checks that a file system under which there are layers can be found without a guest: in a linear logical volume.
func seen(d *supervisor.RecordDisk) error {
	if d.Volume == "" {
		return fmt.Errorf("it lies on %s, which only a guest sees through", strings.Join(d.Layers, " and "))
	}
	f, err := Source{Raw: true}.Look(d.Image)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = disk.At(f, f.Size, whereOf(d))
	return err
}

// WorkOf returns the directory for what is to be written to a disk of a pair (Options.Work): the pair's state
// directory, which it creates, for a block device, and empty, which means beside the disk, for an image.
func WorkOf(pair, disk string) (string, error) {
	dir, err := besideOr(disk, dirs.State(pair))
	if dir != "" {
		err = os.MkdirAll(dir, 0o750)
	}
	return dir, err
}

// besideOr returns a directory for the work on a block device, and empty, which means beside the disk, for an image.
func besideOr(disk, dir string) (string, error) {
	st, err := os.Stat(disk)
	if err != nil {
		return "", fmt.Errorf("find disk: %w", err)
	}
	if st.Mode().IsRegular() {
		return "", nil
	}
	return dir, nil
}

// layered says what to do about a disk whose file system is not seen from here. The operator makes
// the device; this program knows which memories are to be brought to it, and in which order.
func layered(d *supervisor.RecordDisk, why error) error {
	return hint.New("find its file system", why,
		fmt.Sprintf("Make the device of the file system here (losetup, mdadm --assemble, cryptsetup open, lvchange -ay), mount it nowhere, and: understudy recover --disk %s=DEVICE. The memory stays until then.", d.Name))
}
