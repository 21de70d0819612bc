package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/live/domains"
	"understudy.dev/understudy/internal/live/sdnotify"
	"understudy.dev/understudy/internal/takeover/vigil"
)

func salvageWatchCommand() *cobra.Command {
	var (
		o      vigil.Options
		socket string
	)
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Bring the disks of libvirt's domains up to date when their kernels die",
		Long: `Bring the disks of libvirt's domains up to date when their kernels die.

libvirt says when the kernel of a domain has panicked. Then this does what understudy
salvage apply --libvirt DOMAIN --end does: the domain's memory goes to a file, its QEMU is
ended, and its disks get what had not reached them, before anybody can start it again.
Domains that have crashed already are looked at when it begins, and what was broken off by
a kill or by the end of the machine goes on.

A domain needs <on_crash>preserve</on_crash> and a <panic> device, and nothing else; of
those that lack either it is told. What is refused is told, too, with what to do: before
the file is complete, the domain stays crashed as it is; after that, the file is kept.

DIR has what must outlive a run: records of what goes on, and of each domain the report of
its last crash, DOMAIN.report.json, as salvage apply --json prints it. The memory of a
domain that has block devices only goes there, too, for the while: see --work.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			notifier, err := sdnotify.Open()
			if err != nil {
				return err
			}
			defer notifier.Close()
			out := newPatient(withTimes(cmd.OutOrStdout()))
			defer out.close(lastWords)
			o.Tell = func(what string) {
				fmt.Fprintln(out, what)
				_ = notifier.Tell(sdnotify.Status(what)) // the log has it, too
			}
			o.Ready = func() error { return notifier.Tell(sdnotify.Ready) }
			o.Connect = func() (vigil.Hypervisor, error) { return domains.Dial(socket) }
			o.Find, o.Refused = domains.Find, notAdopted
			return vigil.Run(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.State, "state", "/var/lib/understudy-watch", "`DIR` for what must outlive a run")
	f.StringVar(&socket, "socket", "", "libvirt answers at this `PATH`; default: /run/libvirt/virtqemud-sock or libvirt-sock")
	f.BoolVar(&o.Restart, "restart", false, "start a domain again once all that was in its memory is on its disks; default: leave that to others")
	f.StringVar(&o.Adopt.Work, "work", "", "keep memory and overlays in this `DIR`, which needs room for both; default: beside each disk, and for block devices --state")
	f.StringVar(&o.Adopt.Guest, "guest", "", "have a guest do the work, with the kernel in this `DIR`, as of salvage apply")
	f.BoolVar(&o.Adopt.Partial, "partial", false, "XFS, btrfs: as of salvage apply")
	f.BoolVar(&o.Adopt.GiveUp, "give-up", false, giveUpHelp)
	return cmd
}
