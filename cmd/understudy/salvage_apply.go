package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover/offline"
)

// application is one run of salvage apply.
type application struct {
	image, disk string
	mount       string
	work        string
	fs          string
	guest       string
	partial     bool
	dryRun      bool
	json        bool

	memory *inventory.Image
	target *offline.Disk
	on     *salvage.OnDisk
	fsys   *inventory.FileSystem
	report applyReport
}

func applyCommand() *cobra.Command {
	var a application
	cmd := &cobra.Command{
		Use:   "apply IMAGE {--disk DISK | --mount DIR}",
		Short: "Write what a dead kernel had not saved to its disk",
		Long: `Write what a dead kernel had not saved to its disk.

DISK is a raw image or a block device with one of the file systems that the dead
kernel had mounted, as the crash left it. A small guest mounts it, and never this
machine's own kernel. Everything goes to a copy-on-write overlay first, which is
committed to DISK when all of it is done: until then DISK stays as it was, to the
byte. If the commit is broken off, the same command goes on with it.

DIR is where such a file system, XFS or btrfs, is mounted on this machine. It is
written to in place, and cannot be undone: take a snapshot first. What was changed
after the crash is left alone.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			a.image = args[0]
			defer func() { err = errors.Join(err, a.close()) }()
			if err := a.run(cmd.Context()); err != nil {
				return err
			}
			if a.json {
				err = writeJSON(cmd.OutOrStdout(), &a.report)
			} else {
				err = a.report.Write(cmd.OutOrStdout())
			}
			return errors.Join(err, a.report.verdict())
		},
	}
	f := cmd.Flags()
	f.StringVar(&a.disk, "disk", "", "write to this `DISK`: a raw image or a block device")
	f.StringVar(&a.work, "work", "", "keep the overlay in this `DIR` until it is committed; default: beside DISK (with --mount: the data to be written, in TMPDIR)")
	f.StringVar(&a.fs, "fs", "", "the file system of DISK in IMAGE, if several have its UUID: a device (vda)")
	f.StringVar(&a.guest, "guest", "", "boot the kernel in this `DIR`, which has boot/vmlinuz and lib/modules/RELEASE; default: what setup has fetched")
	f.BoolVar(&a.partial, "partial", false, "XFS, btrfs: also write files of which a part is not in memory, and may be older on DISK or missing")
	f.BoolVar(&a.dryRun, "dry-run", false, "print the plan, and write nothing")
	f.BoolVar(&a.json, "json", false, "print for programs")
	f.StringVar(&a.mount, "mount", "", "XFS, btrfs: write to the file system that is mounted on this `DIR`")
	cmd.MarkFlagsOneRequired("disk", "mount")
	for _, other := range []string{"disk", "guest"} {
		cmd.MarkFlagsMutuallyExclusive("mount", other)
	}
	return cmd
}

func (a *application) close() error {
	var errs []error
	if a.target != nil {
		errs = append(errs, a.target.Close())
	}
	if a.memory != nil {
		errs = append(errs, a.memory.Close())
	}
	return errors.Join(errs...)
}

func (a *application) run(ctx context.Context) (err error) {
	if a.memory, err = inventory.Open(a.image); err != nil {
		return err
	}
	if a.mount != "" {
		return a.mounted(ctx)
	}
	if a.target, err = offline.Open(a.disk, a.work); err != nil {
		return err
	}
	if left, unfinished := a.target.Unfinished(); unfinished {
		return a.finish(ctx, left)
	}
	if a.on, err = salvage.Identify(a.target); err != nil {
		return fmt.Errorf("open disk %s: %w", a.disk, err)
	}
	if a.fsys, err = a.fileSystem(a.on.UUID); err != nil {
		return err
	}
	a.report.begin(a)
	var commit *lastCommit
	plan, err := a.plan(func(p *salvage.Plan) error {
		err := p.Check(a.target)
		if err == nil && a.on.Family == "ext" {
			commit, err = a.planCommit(p)
		}
		return err
	})
	if err != nil || a.dryRun {
		return err
	}
	return a.apply(ctx, plan, commit)
}

// plan makes a plan, has it checked, and reports it.
func (a *application) plan(check func(*salvage.Plan) error) (plan *salvage.Plan, err error) {
	err = a.memory.Stage("plan", func() error {
		plan, err = salvage.ForDisk(a.memory.Cache, a.fsys.Super, a.partial)
		return err
	})
	if err == nil {
		err = a.memory.Stage("check disk", func() error { return check(plan) })
	}
	if err != nil {
		return nil, fmt.Errorf("apply to %s: %w", a.disk, err)
	}
	a.report.planned(plan)
	a.report.stages(a.memory.Stages, nil)
	return plan, nil
}

// planCommit has the dead kernel's last commit finished before the disk is mounted.
func (a *application) planCommit(plan *salvage.Plan) (commit *lastCommit, err error) {
	err = a.memory.Stage("last commit", func() error {
		var refused error
		if commit, refused, err = a.finishCommit(a.target); err != nil {
			return err
		}
		a.report.Commit = &commit.report
		if refused == nil {
			settle(plan, a.memory.Cache, a.fsys.Super, commit.did)
			return nil
		}
		a.report.refuse(appliedRefusal{Reason: "the last commit: " + refused.Error()})
		for _, f := range plan.GiveUp() {
			why := appliedRefusal{Inode: uint64(f.Ino), Reason: "it is as a crash leaves it, without the last commit"}
			why.Path, why.PathBase64 = inventory.Text(f.Path)
			a.report.refuse(why)
		}
		return nil
	})
	return commit, err
}

// fileSystem finds the file system of the disk in the dead kernel.
func (a *application) fileSystem(id pagecache.UUID) (*inventory.FileSystem, error) {
	all, _, faults := a.memory.FileSystems()
	wanted := all
	if a.fs != "" {
		var err error
		if wanted, err = inventory.Choose(all, a.fs); err != nil {
			return nil, err
		}
	}
	var names []string
	for _, f := range all {
		if f.HasDevice() {
			names = append(names, fmt.Sprintf("%s (%s)", f.Device, f.Super.UUID))
		}
	}
	wanted = slices.DeleteFunc(slices.Clone(wanted), func(f *inventory.FileSystem) bool { return f.Super.UUID != id })
	switch len(wanted) {
	case 1:
		return wanted[0], nil
	case 0:
		return nil, errors.Join(fmt.Errorf("open disk %s: it has file system %v: the dead kernel had %v mounted, and not that", a.disk, id, names), faults)
	}
	return nil, fmt.Errorf("open disk %s: the dead kernel had %d file systems of its UUID mounted: choose one with --fs by its device: %v", a.disk, len(wanted), names)
}

// identity tells this death and this file system from all others.
func (a *application) identity() offline.Identity {
	k, s := a.memory.Facts(), a.fsys.Super
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %d %d %q %v %v %v", k.Banner, k.KASLR, k.Boot.UnixNano(), k.Now.UnixNano(), k.Panic, s.Addr, s.UUID, s.Dev))
	return offline.Identity{Image: a.image, Kernel: k.Release, UUID: s.UUID.String(), Sum: fmt.Sprintf("%x", sum)}
}

// finish ends the commit of an earlier run.
func (a *application) finish(ctx context.Context, left offline.Identity) error {
	id, err := addr.ParseUUID(left.UUID)
	if err != nil {
		return err
	}
	if a.fsys, err = a.fileSystem(id); err != nil {
		return fmt.Errorf("%w; a commit to it from %s was broken off: finish that first", err, left.Image)
	}
	a.report.begin(a)
	a.report.Resumed = true
	if a.dryRun {
		return fmt.Errorf("plan for %s: a commit to it was broken off: run the same command without --dry-run, and it goes on", a.disk)
	}
	r, err := a.target.Finish(ctx, a.identity())
	if r != nil {
		a.report.stages(a.memory.Stages, r.Stages)
	}
	return err
}

// job is a plan as it is carried out.
func (a *application) job(plan *salvage.Plan) (offline.Job, error) {
	job := offline.Job{
		Identity: a.identity(), Type: a.fsys.Super.Type, Options: mountOptions[a.fsys.Super.Type],
		Size: plan.StagingSize(), Gather: plan.Gather,
	}
	for i := range plan.Files {
		f, err := linkFile(&plan.Files[i])
		if err != nil {
			return job, err
		}
		job.Files = append(job.Files, f)
		if plan.Files[i].Loose != nil {
			job.Attrs = append(job.Attrs, linkAttr(i, &plan.Files[i], a.partial))
		}
	}
	return job, nil
}

func (a *application) apply(ctx context.Context, plan *salvage.Plan, commit *lastCommit) error {
	job, err := a.job(plan)
	if err != nil {
		return err
	}
	if commit != nil {
		job.Raw, job.Check = commit.raw, commit.report.Check != ""
		job.Names = func(found *wire.Check) wire.NameRequest { return namesFor(a.memory.Cache, a.fsys.Super, found) }
	}
	for _, s := range a.on.Super {
		job.Super = append(job.Super, offline.Region{Off: s.Off, Data: make([]byte, s.Len())})
	}
	guest, err := a.appliance(ctx)
	if err != nil {
		return err
	}
	r, err := a.target.Apply(ctx, job, guest)
	if r != nil {
		a.report.applied(plan, r)
		a.report.stages(a.memory.Stages, r.Stages)
	}
	return err
}
