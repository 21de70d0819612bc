package main

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/live/metal"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover/bare"
)

const againUsage = "have the understudy, once it is active, start another beside itself; its kernel and image must lie on a disk that is taken over"

// files returns the files that another understudy is started from.
func (b *beside) files(u *metal.Understudy) (*metal.Again, error) {
	a := &metal.Again{Append: b.appended}
	var err error
	if a.Kernel, err = metal.NewFile(b.kernel, u.Kernel, u.Config.Role); err != nil {
		return nil, err
	}
	a.Image, err = metal.NewFile(b.image, u.Image, u.Config.Role)
	return a, err
}

// metalAgainCommand is the command by which PID 1 of an understudy that has taken over keeps another
// one. It is not for users.
func metalAgainCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "again",
		Short:  "On an understudy that has taken over: start another beside it, and beat for it until this ends",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE:   func(cmd *cobra.Command, _ []string) error { return keepAnother(cmd.Context(), cmd.OutOrStdout()) },
	}
}

func keepAnother(ctx context.Context, w io.Writer) error {
	self, err := metal.OpenSelf()
	if err != nil {
		return err
	}
	m, err := self.Machine(os.DirFS("/"))
	if err != nil {
		return err
	}
	if err := m.Bound(); err != nil {
		return err
	}
	if unfit := metal.Unfit(m.Check(os.DirFS("/"), metal.Host{})); len(unfit) > 0 {
		return &metal.Refused{Findings: unfit}
	}
	r, err := m.Reservation()
	if err != nil {
		return err
	}
	b := beside{beat: wire.Beat{Period: beatPeriod, CPU: self.Config.CPU}, limit: self.Config.Limit, roots: []string{""}}
	root := bare.RootOf(self.Config.Role)
	if root != "" {
		b.roots = append(b.roots, root)
	}
	u, err := self.Successor(root)
	if err != nil {
		return err
	}
	n, err := metal.Start(m, u)
	if err != nil {
		return err
	}
	err = replaceFile(bare.BesideFile, []byte(metal.Parameter+r.String()))
	if err == nil {
		err = b.guard(ctx, n, w, func() error {
			now, err := self.Machine(os.DirFS("/"))
			if err != nil {
				return err
			}
			return m.Still(now, os.DirFS("/"), metal.Host{})
		})
	}
	return errors.Join(err, n.Stop(), os.Remove(bare.BesideFile))
}
