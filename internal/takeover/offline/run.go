package offline

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/guest"
	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/draft"
	"understudy.dev/understudy/internal/takeover/morgue"
)

// Options say what is brought up to date, and how.
type Options struct {
	disk.Where // which part of Disk has the file system
	Source     // of Disk

	Image   string   // path of the memory
	Parts   []string // further files of it (ram.OpenFiles)
	Disk    string   // path of a raw image or a block device, unless Mount is given
	Mount   string   // where XFS or btrfs is mounted on this machine
	Work    string   // directory of the overlay; empty means beside Disk
	FS      string   // a device of the dead machine, if several file systems there have Disk's UUID
	Guest   string   // directory of the guest's kernel, as for dirs.Kernel
	Partial bool     // XFS, btrfs: also write files of which a part is not in memory
	DryRun  bool     // plan, and write nothing
	// GiveUp brings a disk whose last commit is refused to the state that an ordinary crash
	// leaves, without that commit. Otherwise not a byte of the disk changes.
	GiveUp bool
	// Forget removes what an unfinished run for another memory has left beside Disk, if nothing
	// of that run is on Disk. Otherwise this is an error.
	Forget bool

	// handedOver is nil if Disk is to be as Image left it.
	handedOver *handOver
	// print asks for Report.print.
	print bool
	// held is Disk, if it is claimed already. It is left open.
	held *hold
}

// application is one run of salvage apply.
type application struct {
	Options

	memory  *inventory.Image
	target  *Disk
	on      *salvage.OnDisk
	fsys    *inventory.FileSystem
	remains *morgue.Remains
	report  *Report
	lost    bool // the last commit is refused
	unclean bool // with handedOver: the check that the last commit needs was not completed
	draft   *draft.Draft
	checked *wire.Check // of the draft; nil if it was not checked
}

// Run brings a disk, or a mounted file system, to the state that a dead kernel had in
// memory. The report says what was done and what was refused. With an error, it covers what
// was done until then, or is nil.
func Run(ctx context.Context, o Options) (_ *Report, err error) {
	a := &application{Options: o}
	defer func() { err = errors.Join(err, a.close()) }()
	err = a.run(ctx)
	if err == nil && a.print {
		a.report.print, err = fingerprint(a.target)
	}
	return a.report, err
}

// elsewhere adds to an error the parts of the disk that have a file system, if the one that was selected has none.
func (a *application) elsewhere(err error) error {
	if !errors.Is(err, salvage.ErrNoFileSystem) {
		return err
	}
	found, unusable, bad := a.places(a.target.path)
	if bad != nil || len(found)+len(unusable) == 0 {
		return err
	}
	var lines []string
	for p := range found {
		lines = append(lines, fmt.Sprintf("%s has file system %s: --disk %s", p.Name(), found[p], p.argument()))
	}
	for _, u := range unusable {
		lines = append(lines, "no file system can be written to in "+u.Error())
	}
	slices.Sort(lines)
	return hint.New("find the file system", err, strings.Join(lines, "\n  "))
}

func (a *application) close() error {
	var errs []error
	if a.draft != nil {
		errs = append(errs, a.draft.Close())
	}
	if a.target != nil {
		errs = append(errs, a.target.Close())
	}
	if a.memory != nil {
		errs = append(errs, a.memory.Close())
	}
	return errors.Join(errs...)
}

func (a *application) run(ctx context.Context) (err error) {
	if a.memory, err = inventory.OpenFiles(append([]string{a.Image}, a.Parts...), morgue.Builds()...); err != nil {
		return err
	}
	if a.memory.Info().Live {
		return fmt.Errorf("read %s: this is the memory of a running machine, which writes its unsaved data itself", a.Image)
	}
	if a.Mount != "" {
		return a.mounted(ctx)
	}
	if a.target, err = a.open(a.Disk, a.Where, a.Work, a.held); err != nil {
		return err
	}
	a.target.forget = a.Forget
	if left, unfinished := a.target.Unfinished(); unfinished && (!a.target.Other() || a.ours(left)) {
		return a.finish(ctx, left)
	}
	if a.on, err = salvage.Identify(a.target); err != nil {
		return a.elsewhere(fmt.Errorf("open disk %s: %w", a.Disk, err))
	}
	var none *notMounted
	if a.fsys, err = a.fileSystem(a.on.UUID); errors.As(err, &none) {
		none.uuid, none.unclean, none.died = a.on.UUID.String(), morgue.Clean(a.on, a.target), a.memory.Facts().Now
	}
	if err != nil {
		return err
	}
	a.begin()
	err = a.plan(func(p *salvage.Plan) (err error) {
		if a.handedOver != nil {
			if err := a.handedOver.check(a.target, a.on); err != nil {
				return a.unproven(err)
			}
			a.unclean, err = unclean(a.target, a.on)
			return err
		}
		err = p.Check(a.target)
		if err == nil && a.on.Family == "ext" {
			err = a.finishCommit(ctx)
		}
		return err
	})
	if err != nil || a.DryRun {
		return err
	}
	if a.lost && !a.GiveUp {
		a.report.Untouched = true
		return nil
	}
	return a.apply(ctx)
}

// unclean reports whether the superblock says that its file system needs a check: a last commit
// made it say so (journal.Rescue), and a check resets that at its end. A mount leaves the
// superblock like that only if there is no journal, and then a check is needed, too.
func unclean(disk io.ReaderAt, on *salvage.OnDisk) (bool, error) {
	if on.Family != "ext" {
		return false, nil
	}
	b := make([]byte, ext4.SuperSize)
	if _, err := disk.ReadAt(b, ext4.SuperOffset); err != nil {
		return false, fmt.Errorf("read superblock: %w", err)
	}
	s, err := ext4.ParseSuper(b)
	return s.State&ext4.StateValid == 0, err
}

// plan makes a plan, checks it with check, and reports it.
func (a *application) plan(check func(*salvage.Plan) error) error {
	a.remains = &morgue.Remains{Cache: a.memory.Cache, Super: a.fsys.Super, Wait: a.Guest != ""}
	err := a.memory.Stage("plan", func() (err error) {
		a.remains.Plan, err = salvage.ForDisk(a.memory.Cache, a.fsys.Super, a.Partial)
		return err
	})
	if err == nil {
		err = a.memory.Stage("check disk", func() error { return check(a.remains.Plan) })
	}
	if err != nil {
		return fmt.Errorf("apply to %s: %w", a.Disk, err)
	}
	a.report.planned(a.remains.Plan, a.remains.Placed)
	a.report.stages(a.memory.Stages, nil)
	return nil
}

// finishCommit carries out the dead kernel's last commit on a draft of the disk. If the commit is refused, nothing of
// it is used: the disk is then what an ordinary crash leaves.
func (a *application) finishCommit(ctx context.Context) error {
	dir := filepath.Dir(a.target.Work())
	if a.DryRun {
		dir = os.TempDir()
	}
	a.draft = draft.New(a.target, dir)
	a.draft.PutOff()
	var c takeover.Commit
	err := a.memory.Stage("last commit", func() (err error) {
		c, err = a.remains.Finish(a.draft)
		return err
	})
	if failed := a.draft.Failed(); failed != nil {
		return hint.New("directory "+dir, fmt.Errorf("stage what is to be written to the disk: %w", failed),
			"Make room there, or name another place with --work. Nothing was written to the disk.")
	}
	c.Disk = a.Disk
	a.report.Commit = &c
	var lost *takeover.GivenUp
	switch {
	case errors.Is(err, journal.ErrLog):
		return fmt.Errorf("%w: %w", salvage.ErrDiskChanged, err)
	case errors.As(err, &lost):
		c.Check, a.lost = "", true
		a.report.refuse(lost.Refused()...)
		return nil
	case err != nil:
		return err
	}
	if c.Check != "" && !a.DryRun && a.Guest == "" {
		return a.checkHere(ctx)
	}
	return nil
}

// drafted adds the content of the draft to a job. A guest gets all of it as blocks.
func (a *application) drafted(job *Job, guest bool) error {
	if a.draft == nil || a.lost {
		return nil
	}
	if guest {
		if err := a.draft.Settle(); err != nil {
			return err
		}
	}
	changed, err := a.draft.Changed()
	if err != nil {
		return err
	}
	for off, data := range changed {
		job.Raw = append(job.Raw, Raw{Off: off, Data: data})
	}
	job.Free = a.draft.Free()
	return nil
}

// checkHere checks the draft with this machine's e2fsck, and then places the files that wait
// for that. If this machine cannot check it, or if names are to be restored, which takes a
// mount, the draft is reset, and all of it is left to a guest.
func (a *application) checkHere(ctx context.Context) error {
	before := a.draft.Mark()
	var found *wire.Check
	err := a.memory.Stage("e2fsck", func() (err error) {
		found, err = a.draft.Check(ctx, a.target.Size, nil)
		return err
	})
	if errors.Is(err, draft.ErrNoCheck) || err == nil && found.Names() {
		a.draft.Reset(before)
		return nil
	}
	if err != nil {
		return err
	}
	a.checked = found
	return a.memory.Stage("place", func() error { return a.remains.PlaceChecked(a.draft, a.report.Commit) })
}

// fileSystem finds the dead kernel's file system that the disk has.
func (a *application) fileSystem(id pagecache.UUID) (*inventory.FileSystem, error) {
	all, _, faults := a.memory.FileSystems()
	wanted := all
	if a.FS != "" {
		var err error
		if wanted, err = inventory.Choose(all, a.FS); err != nil {
			return nil, err
		}
	}
	var names []string
	for _, f := range all {
		if f.HasDevice() {
			names = append(names, fmt.Sprintf("%s (%s)", f.Device, f.Super.UUID))
		}
	}
	wanted = inventory.OfUUID(wanted, id)
	switch len(wanted) {
	case 1:
		return wanted[0], nil
	case 0:
		return nil, a.noneOf(names, id, faults)
	}
	return nil, fmt.Errorf("open disk %s: the dead kernel had %d file systems of its UUID mounted: choose one with --fs by its device: %v", a.Disk, len(wanted), names)
}

// identity returns the Identity of this death and this file system, which no others have.
func (a *application) identity() Identity {
	k, s := a.memory.Facts(), a.fsys.Super
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %d %d %q %v %v %v", k.Banner, k.KASLR, k.Boot.UnixNano(), k.Now.UnixNano(), k.Panic, s.Addr, s.UUID, s.Dev))
	return Identity{Image: a.Image, Kernel: k.Release, UUID: s.UUID.String(), Sum: fmt.Sprintf("%x", sum)}
}

// ours reports whether a commit was from this memory.
func (a *application) ours(left Identity) bool {
	id, err := addr.ParseUUID(left.UUID)
	if err == nil {
		a.fsys, err = a.fileSystem(id)
	}
	return err == nil && a.identity().Sum == left.Sum
}

// finish completes the commit of an earlier run.
func (a *application) finish(ctx context.Context, left Identity) error {
	id, err := addr.ParseUUID(left.UUID)
	if err != nil {
		return err
	}
	if a.fsys, err = a.fileSystem(id); err != nil {
		return inBetween{fmt.Errorf("%w; a commit to it from %s was broken off: finish that first", err, left.Image)}
	}
	a.begin()
	a.report.Resumed = true
	if a.DryRun && !a.target.Other() {
		return fmt.Errorf("plan for %s: a commit to it was broken off: run the same command without --dry-run, and it goes on", a.Disk)
	}
	r, err := a.target.Finish(ctx, a.identity())
	if r != nil {
		a.report.stages(a.memory.Stages, r.Stages)
		if r.Lacks != "" {
			a.report.refuse(takeover.Refusal{Reason: r.Lacks})
		}
	}
	return err
}

// job returns the plan as a job.
func (a *application) job() (Job, error) {
	plan := a.remains.Plan
	job := Job{
		Identity: a.identity(), Type: a.fsys.Super.Type, Options: mountOptions[a.fsys.Super.Type],
		Size: plan.StagingSize(), Gather: plan.Gather,
	}
	var err error
	job.Files, job.Attrs, err = morgue.Files(plan, a.Partial)
	return job, err
}

func (a *application) apply(ctx context.Context) error {
	job, err := a.job()
	if err != nil {
		return err
	}
	if c := a.report.Commit; c != nil {
		job.Check = c.Check != "" && a.checked == nil
	}
	job.Check, job.Names = job.Check || a.unclean, a.remains.Names
	job.Refused = !a.report.Complete
	for _, s := range a.on.Super {
		job.Super = append(job.Super, Region{Off: s.Off, Data: make([]byte, s.Len())})
	}
	needed := job.NeedsGuest() || a.Guest != ""
	if err := a.drafted(&job, needed); err != nil {
		return err
	}
	if !needed {
		return a.applied(a.target.Apply(ctx, job, nil))
	}
	guest, err := a.guest(ctx)
	if err != nil {
		return err
	}
	return a.applied(a.target.Apply(ctx, job, &guest))
}

// applied reports the result of a job.
func (a *application) applied(r *Result, err error) error {
	if r != nil {
		if a.checked != nil {
			r.Check = a.checked
		}
		a.report.applied(a.remains, r)
		a.report.stages(a.memory.Stages, r.Stages)
	}
	return err
}

// mountOptions are the options with which a guest mounts a file system, by type: a path of
// btrfs begins at its top-level subvolume, whatever subvolume is the default.
var mountOptions = map[string]string{"xfs": "noatime", "btrfs": "noatime,subvolid=5"}

// guest returns the guest that the work is done in.
func (a *application) guest(ctx context.Context) (Guest, error) {
	g, err := newGuest(ctx, a.Guest, a.fsys.Super.Type)
	// The directory is named after the disk's work directory, so the claim on the disk makes it ours.
	where := sha256.Sum256([]byte(a.target.Work()))
	g.Dir = dirs.Run(fmt.Sprintf("apply-%x", where[:6]))
	return g, err
}

// newGuest returns a guest for a file system of a type, with the kernel from a directory,
// as for dirs.Kernel. Its Dir is not set yet.
func newGuest(ctx context.Context, dir, fsType string) (Guest, error) {
	kernel, modules, err := dirs.Kernel(dir)
	if err != nil {
		return Guest{}, err
	}
	machine, err := pair.ThisMachine()
	if err != nil {
		return Guest{}, err
	}
	accel, err := partition.FindAccel(ctx, kernel)
	if err != nil {
		return Guest{}, err
	}
	image := guest.Image{Modules: modules, Types: []string{fsType}}
	return Guest{Kernel: kernel, Image: image.WriteFile, Accel: accel, CPUs: machine.CPUs}, nil
}
