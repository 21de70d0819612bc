package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/takeover/offline"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

func recoverCommand() *cobra.Command {
	var (
		o      offline.RecoverOptions
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "recover [PAIR]",
		Short: "Bring to the disks what a pair that ended badly has in memory only",
		Long: `Bring to the disks what a pair that ended badly has in memory only.

A takeover that failed, a supervisor that was killed, or a pair that was forced down
leaves memory in its run directory. Its record says how far each disk has come; the rest
is done as understudy salvage apply does it; so it is with what the partitions had not
written to root disks of their own. A file system on LVM, LUKS
or a mirror is brought up to date on its own device, which is made by hand and named with
--disk. Once all of it is on the
disks, the run directory is removed. What is refused stays in memory, and the exit status
is 3. A disk that is not the pair's, or that somebody else has used since, is left as it
is, and so is the memory.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := findLeft(first(args))
			if err != nil {
				return err
			}
			d, err := supervisor.OpenRunDir(dirs.Run(name))
			if errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("pair %s has left nothing", name)
			}
			if err != nil {
				return err
			}
			if d.HasGuests() {
				return errors.Join(fmt.Errorf("the guests of pair %s run: understudy up takes charge of them again, understudy down %s stops them in good order", name, name), d.Close())
			}
			if err := d.EndGuests(); err != nil {
				return errors.Join(err, d.Close())
			}
			reports, err := offline.Recover(cmd.Context(), d, o)
			if err == nil || d.Record != nil && d.Record.Saved {
				err = errors.Join(err, recovered(d, name, reports))
			}
			if d.AtStake() {
				err = errors.Join(err, d.Close())
			} else {
				err = errors.Join(err, d.Remove())
			}
			if asJSON {
				err = errors.Join(err, writeJSON(cmd.OutOrStdout(), reports))
			}
			for _, r := range reports {
				if !asJSON {
					err = errors.Join(err, writeApplied(cmd.OutOrStdout(), r))
				}
				err = errors.Join(err, applyVerdict(r))
			}
			return err
		},
	}
	cmd.Flags().StringVar(&o.Guest, "guest", "", "boot the kernel in this `DIR`, which has boot/vmlinuz and lib/modules/RELEASE; default: what scripts/setup.sh has fetched, else this machine's own kernel")
	cmd.Flags().StringToStringVar(&o.Devices, "disk", nil, "the file system of the pair's disk NAME is on DEVICE, not at its image: `NAME=DEVICE`")
	cmd.Flags().StringVar(&o.Work, "work", "", "`DIR` for the overlay, as of salvage apply; default: beside the disk, or, of a block device, /var/lib/understudy/PAIR")
	cmd.Flags().BoolVar(&o.GiveUp, "give-up", false, giveUpHelp)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print for programs")
	return cmd
}

// recovered returns what is to be reported about a run directory after a Recover that succeeded, in
// addition to the verdicts of its reports: nil if none of its data is in memory only.
func recovered(d *supervisor.RunDir, name string, reports []*offline.Report) error {
	switch {
	case !d.AtStake():
		return nil
	case d.Record.Saved:
		return &supervisor.Unsaved{Dir: d.Path, Record: d.Record}
	case slices.ContainsFunc(reports, func(r *offline.Report) bool { return !r.Complete }): // their verdicts report it
		return nil
	}
	left := "what was refused is"
	if slices.ContainsFunc(d.Record.Disks, func(d supervisor.RecordDisk) bool { return d.Refused == nil }) {
		left = "its record is of an older version, which did not record whether it had refused anything; what it refused, if anything, is"
	}
	return &incomplete{[]string{fmt.Sprintf("all that could be brought to the disks of pair %s is there; %s in %s: understudy salvage extract reads it, understudy down --discard %s removes it", name, left, d.Path, name)}}
}

// findLeft returns the pair of that name, or the only one that has left a run directory.
func findLeft(name string) (string, error) {
	if name != "" {
		return name, nil
	}
	left, err := filepath.Glob(dirs.Run("*"))
	if err != nil {
		return "", err
	}
	left = slices.DeleteFunc(left, func(path string) bool {
		d, err := supervisor.OpenRunDir(path)
		return err != nil || d.Close() != nil || !d.AtStake()
	})
	switch len(left) {
	case 0:
		return "", errors.New("no pair has left anything in memory only")
	case 1:
		return strings.TrimPrefix(filepath.Base(left[0]), filepath.Base(dirs.Run(""))), nil
	}
	return "", fmt.Errorf("%d pairs have left something: say which", len(left))
}
