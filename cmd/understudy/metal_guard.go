package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/live/agent"
	"understudy.dev/understudy/internal/live/metal"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover/bare"
)

// startLimit is how long an understudy may take until it protects the running kernel.
const startLimit = 3 * time.Minute

// guard beats for an understudy that was started, and returns when ctx ends. fit checks that this
// machine still is what the understudy was started for.
func (b *beside) guard(ctx context.Context, n *metal.Neighbour, w io.Writer, fit func() error) error {
	starting, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("it took more than %v", startLimit))
	defer cancel()
	if err := n.Await(starting, metal.Protected); err != nil {
		return err
	}
	page, err := n.BeatPage()
	if err != nil {
		return err
	}
	if err := agent.BeatOn(page, b.beats()); err != nil {
		return err
	}
	release, err := metal.Reserved(b.roots...)
	if err != nil {
		return err
	}
	defer release()
	if err := fit(); err != nil {
		return err
	}
	fmt.Fprintln(w, "protected")
	return attend(ctx, n, fit)
}

// beats are the settings of the threads that count. Those on the CPUs count often enough for the limit of the
// silence of all of them, too: the beat alone may stand still for longer.
func (b *beside) beats() wire.Beat {
	beat := b.beat
	if b.limit > 0 && (beat.CPU == 0 || b.limit < beat.CPU) {
		beat.CPU = b.limit
	}
	return beat
}

// neighbour has those methods of an understudy that attend uses.
type neighbour interface {
	SetClock(time.Time)
	Beats() uint64
	Log() []byte
}

// attend tells an understudy the time until ctx ends, the understudy stands still, or the machine is
// no longer fit for it.
func attend(ctx context.Context, n neighbour, fit func() error) error {
	tick, look := time.NewTicker(clockPeriod), time.NewTicker(fitPeriod)
	defer tick.Stop()
	defer look.Stop()
	looked, looking := make(chan error, 1), false
	beats, still := n.Beats(), 0 // how many times in a row it had not beaten
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-look.C: // fit may take long on a busy machine
			if !looking {
				looking = true
				go func() { looked <- fit() }()
			}
		case err := <-looked:
			if looking = false; err != nil {
				return err
			}
		case <-tick.C: // this tick may have been due for long
			n.SetClock(time.Now())
			if b := n.Beats(); b != beats {
				beats, still = b, 0
			} else if still++; still > int(stillLimit/clockPeriod) {
				return fmt.Errorf("the understudy stands still; it said:\n%s", n.Log())
			}
		}
	}
}

// stillLimit is how long an understudy may stand still before it counts as dead. It is counted in observations, since
// this process may be late itself.
const stillLimit = 10 * time.Second

// fitPeriod is how often we check that this machine is still fit.
const fitPeriod = 5 * time.Second

// clockPeriod is how often the understudy is told the time.
const clockPeriod = time.Second

func metalStatusCommand() *cobra.Command {
	var verbose bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say how the understudy beside this kernel is",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			line, err := os.ReadFile(bare.BesideFile)
			if errors.Is(err, os.ErrNotExist) { // this kernel is not an understudy that has one itself
				line, err = os.ReadFile("/proc/cmdline")
			}
			if err != nil {
				return err
			}
			r, err := metal.ParseReservation(string(line))
			if err != nil {
				return err
			}
			n, err := metal.OpenNeighbour(r)
			if err != nil {
				return err
			}
			defer n.Close()
			state := n.State()
			before := n.Beats()
			time.Sleep(100 * time.Millisecond)
			if state >= metal.Protected && state < metal.Stopped && n.Beats() == before {
				return errors.New("not protected: the understudy stands still")
			}
			fmt.Fprintln(cmd.OutOrStdout(), state)
			if verbose {
				_, err = cmd.OutOrStdout().Write(n.Log())
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&verbose, "verbose", "v", false, "also print what it said")
	return cmd
}

func metalReturnCommand() *cobra.Command {
	discard := false
	cmd := &cobra.Command{
		Use:   "return",
		Short: "On an understudy that has taken over: stop in good order, and reset the machine, which boots its own kernel",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return bare.Return(cmd.Context(), discard) },
	}
	cmd.Flags().BoolVar(&discard, "discard", false, "even if the dead kernel's memory may be all that has what was refused, which is lost")
	return cmd
}

// metalEnterCommand is the command by which PID 1 of an understudy starts services. It is not for users.
func metalEnterCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "enter UNIT | COMMAND...",
		Short:  "On an understudy that has taken over a root file system: become a service of it",
		Args:   cobra.MinimumNArgs(1),
		Hidden: true,
		RunE:   func(_ *cobra.Command, args []string) error { return bare.Enter(args) },
	}
}
