package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/takeover/offline"
)

const giveUpHelp = "if the last commit is refused, bring the disk to what an ordinary crash leaves; default: leave it as it is, to the byte"

func applyCommand() *cobra.Command {
	var (
		a      offline.Adoption
		of     machine
		asJSON bool
		finish bool
	)
	o := &a.Options
	cmd := &cobra.Command{
		Use:   "apply {IMAGE... {--disk DISK | --mount DIR} | {--pid QEMU | --libvirt DOMAIN} --end | --finish --disk DISK}",
		Short: "Write what a dead kernel had not saved to its disk",
		Long: `Write what a dead kernel had not saved to its disk.

DISK is a raw or qcow2 image or a block device with one of the file systems that the dead
kernel had mounted, as the crash left it. If it must be mounted for that, a small guest
does, and never this machine's own kernel. Everything goes beside DISK first, and to it
when all of it is there: until then DISK stays as it was, to the
byte. If the commit is broken off, the same command goes on with it; so does --finish,
without IMAGE, if that is gone.

DIR is where such a file system, XFS or btrfs, is mounted on this machine. It is
written to in place, and cannot be undone: take a snapshot first. What was changed
after the crash is left alone.

With --pid or --libvirt it is all the disks of a machine that QEMU still has, and whose
kernel is dead in it. QEMU need not have been started by us. It is stopped; its memory is
copied to a file beside the first disk; then it is ended, and each disk gets what the
machine had mounted from it. The file is removed if all of it is on the disks.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if of.named() || finish {
				return cobra.NoArgs(cmd, args)
			}
			return cobra.MinimumNArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if of.named() {
				return adopt(cmd.Context(), &of, a, cmd.OutOrStdout(), asJSON)
			}
			if finish {
				return finishCommits(cmd, o, asJSON)
			}
			o.Image, o.Parts = args[0], args[1:]
			r, err := offline.Run(cmd.Context(), *o)
			if err != nil {
				return err
			}
			return tellApplied(cmd, r, asJSON)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Disk, "disk", "", "write to this `DISK`: a raw or qcow2 image, or a block device")
	whereFlags(f, &o.Where, "the file system", "it begins with DISK")
	backingFlag(f, &o.Source)
	f.StringVar(&o.Work, "work", "", "keep the overlay in this `DIR`, on no tmpfs, until it is committed; default: beside DISK (with --mount: the data to be written, in TMPDIR)")
	f.StringVar(&o.FS, "fs", "", "the file system of DISK in IMAGE, if several have its UUID: a device (vda)")
	f.StringVar(&o.Guest, "guest", "", "have a guest do the work, with the kernel in this `DIR`, which has boot/vmlinuz and lib/modules/RELEASE; default: what setup has fetched, and only if a guest is needed")
	f.BoolVar(&o.Partial, "partial", false, "XFS, btrfs: also write files of which a part is not in memory, and may be older on DISK or missing")
	f.BoolVar(&o.GiveUp, "give-up", false, giveUpHelp)
	f.BoolVar(&o.DryRun, "dry-run", false, "print the plan, and write nothing")
	f.BoolVar(&asJSON, "json", false, "print for programs")
	f.StringVar(&o.Mount, "mount", "", "XFS, btrfs: write to the file system that is mounted on this `DIR`")
	of.flags(cmd)
	f.StringVar(&a.Memory, "memory", "", "keep the machine's memory in this new `FILE`; default: in the directory of --work, or beside the first disk")
	f.BoolVar(&a.End, "end", false, "the machine's QEMU may be ended, once its memory is in a file")
	f.BoolVar(&finish, "finish", false, "finish what was broken off while it was written to DISK, or to parts of it, without IMAGE")
	f.BoolVar(&a.Hung, "hung", false, "the machine's kernel is dead, although it is in no panic")
	for _, other := range []string{"mount", "pid", "libvirt", "partition", "lvm", "fs", "guest", "partial", "give-up", "dry-run"} {
		cmd.MarkFlagsMutuallyExclusive("finish", other)
	}
	cmd.MarkFlagsOneRequired("disk", "mount", "pid", "libvirt")
	for _, other := range []string{"disk", "guest", "partition", "lvm", "backing"} {
		cmd.MarkFlagsMutuallyExclusive("mount", other)
	}
	cmd.MarkFlagsMutuallyExclusive("partition", "lvm")
	for _, of := range []string{"pid", "libvirt"} {
		for _, other := range []string{"disk", "mount", "fs", "dry-run", "partition", "lvm", "backing"} {
			cmd.MarkFlagsMutuallyExclusive(of, other)
		}
	}
	return cmd
}

// whereFlags adds the options that say in which part of a disk something is.
func whereFlags(f *pflag.FlagSet, w *disk.Where, what, otherwise string) {
	f.IntVar(&w.Part, "partition", 0, fmt.Sprintf("`N`: %s is in partition N; default: %s", what, otherwise))
	f.StringVar(&w.Volume, "lvm", "", fmt.Sprintf("`GROUP/NAME`: %s is in this linear logical volume, whose volume group has only this disk", what))
}

// backingFlag adds the option that names backing files.
func backingFlag(f *pflag.FlagSet, s *offline.Source) {
	f.StringArrayVar(&s.Backing, "backing", nil, "`FILE` is the backing file that a qcow2 image says it has; may be given for each")
}

// tellApplied prints a report, and returns its verdict.
func tellApplied(cmd *cobra.Command, r *offline.Report, asJSON bool) error {
	write := writeApplied
	if asJSON {
		write = func(w io.Writer, r *offline.Report) error { return writeJSON(w, r) }
	}
	return errors.Join(write(cmd.OutOrStdout(), r), applyVerdict(r))
}

// finishCommits finishes interrupted commits to a disk.
func finishCommits(cmd *cobra.Command, o *offline.Options, asJSON bool) error {
	reports, err := offline.Settle(cmd.Context(), o.Disk, o.Work, o.Source)
	if err == nil && len(reports) == 0 {
		return fmt.Errorf("disk %s: no commit to it was broken off, so there is none to finish", o.Disk)
	}
	for _, r := range reports {
		err = errors.Join(err, tellApplied(cmd, r, asJSON))
	}
	return err
}
