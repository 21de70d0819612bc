package main

import (
	"errors"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/takeover/offline"
)

const giveUpHelp = "if the last commit is refused, bring the disk to what an ordinary crash leaves; default: leave it as it is, to the byte"

func applyCommand() *cobra.Command {
	var (
		o      offline.Options
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "apply IMAGE... {--disk DISK | --mount DIR}",
		Short: "Write what a dead kernel had not saved to its disk",
		Long: `Write what a dead kernel had not saved to its disk.

DISK is a raw image or a block device with one of the file systems that the dead
kernel had mounted, as the crash left it. If it must be mounted for that, a small guest
does, and never this machine's own kernel. Everything goes beside DISK first, and to it
when all of it is there: until then DISK stays as it was, to the
byte. If the commit is broken off, the same command goes on with it.

DIR is where such a file system, XFS or btrfs, is mounted on this machine. It is
written to in place, and cannot be undone: take a snapshot first. What was changed
after the crash is left alone.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Image, o.Parts = args[0], args[1:]
			r, err := offline.Run(cmd.Context(), o)
			if err != nil {
				return err
			}
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), r)
			} else {
				err = writeApplied(cmd.OutOrStdout(), r)
			}
			return errors.Join(err, applyVerdict(r))
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Disk, "disk", "", "write to this `DISK`: a raw image or a block device")
	f.StringVar(&o.Work, "work", "", "keep the overlay in this `DIR` until it is committed; default: beside DISK (with --mount: the data to be written, in TMPDIR)")
	f.StringVar(&o.FS, "fs", "", "the file system of DISK in IMAGE, if several have its UUID: a device (vda)")
	f.StringVar(&o.Guest, "guest", "", "have a guest do the work, with the kernel in this `DIR`, which has boot/vmlinuz and lib/modules/RELEASE; default: what setup has fetched, and only if a guest is needed")
	f.BoolVar(&o.Partial, "partial", false, "XFS, btrfs: also write files of which a part is not in memory, and may be older on DISK or missing")
	f.BoolVar(&o.GiveUp, "give-up", false, giveUpHelp)
	f.BoolVar(&o.DryRun, "dry-run", false, "print the plan, and write nothing")
	f.BoolVar(&asJSON, "json", false, "print for programs")
	f.StringVar(&o.Mount, "mount", "", "XFS, btrfs: write to the file system that is mounted on this `DIR`")
	cmd.MarkFlagsOneRequired("disk", "mount")
	for _, other := range []string{"disk", "guest"} {
		cmd.MarkFlagsMutuallyExclusive("mount", other)
	}
	return cmd
}
