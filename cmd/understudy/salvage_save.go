package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/live/domains"
	"understudy.dev/understudy/internal/live/foreign"
	"understudy.dev/understudy/internal/takeover/offline"
)

// machine selects one of the QEMU processes that somebody else started.
type machine struct {
	pid    int
	domain string
}

func (m *machine) flags(cmd *cobra.Command) {
	cmd.Flags().IntVar(&m.pid, "pid", 0, "the machine that the QEMU of this process number runs")
	cmd.Flags().StringVar(&m.domain, "libvirt", "", "the machine of this `DOMAIN` of libvirt, crashed (<on_crash>preserve</on_crash>) or paused")
	cmd.MarkFlagsMutuallyExclusive("pid", "libvirt")
}

func (m *machine) named() bool { return m.pid != 0 || m.domain != "" }

func (m *machine) open() (*foreign.Machine, error) {
	if m.domain != "" {
		return domains.Find(m.domain)
	}
	return foreign.Open(m.pid)
}

func saveCommand() *cobra.Command {
	var m machine
	cmd := &cobra.Command{
		Use:   "save {--pid QEMU | --libvirt DOMAIN} FILE",
		Short: "Copy the memory of a machine that QEMU runs to a file",
		Long: `Copy the memory of a machine that QEMU runs to a file.

QEMU need not have been started by us, nor help: it is stopped, its memory is read where it
lies, and it goes on. FILE is new, and for the other verbs of salvage. Pages that were never
used are holes in it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			found, err := m.open()
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, found.Close()) }()
			if err := found.Freeze(); err != nil {
				return err
			}
			return found.Save(cmd.Context(), args[0])
		},
	}
	m.flags(cmd)
	cmd.MarkFlagsOneRequired("pid", "libvirt")
	return cmd
}

// adopt does what salvage apply does for a machine whose QEMU still runs.
func adopt(ctx context.Context, m *machine, a offline.Adoption, out io.Writer, asJSON bool) (err error) {
	found, err := m.open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, found.Close()) }()
	done, err := a.Run(ctx, found)
	if done == nil {
		return err
	}
	if asJSON {
		return errors.Join(err, writeJSON(out, done), adoptedVerdict(done))
	}
	return errors.Join(err, writeAdopted(out, done), adoptedVerdict(done))
}

func writeAdopted(w io.Writer, a *offline.Adopted) error {
	for _, r := range a.Reports {
		if err := writeApplied(w, r); err != nil {
			return err
		}
	}
	out := bufio.NewWriter(w)
	if a.Memory != "" {
		fmt.Fprintf(out, "the machine's memory is kept in %s\n", a.Memory)
	}
	return out.Flush()
}

// adoptedVerdict returns nil if everything in memory is on the disks.
func adoptedVerdict(a *offline.Adopted) error {
	if what := notAdopted(a); len(what) > 0 {
		return &incomplete{what}
	}
	return nil
}

// notAdopted returns what is in memory and not on the disks.
func notAdopted(a *offline.Adopted) (what []string) {
	for _, r := range a.Reports {
		var i *incomplete
		if errors.As(applyVerdict(r), &i) {
			what = append(what, i.what...)
		}
	}
	for _, missing := range a.Missing {
		what = append(what, "on no disk of the machine: "+missing)
	}
	return what
}
