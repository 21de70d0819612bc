package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"understudy.dev/understudy/internal/live/events"
	"understudy.dev/understudy/internal/live/metrics"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// switchRequest makes the understudy take over in good order.
type switchRequest struct {
	Kernel    string `json:"kernel,omitempty"` // path of the kernel that both sides are to run; empty means as before
	Initramfs string `json:"initramfs,omitempty"`
}

// order is a switch that was asked for.
type order struct {
	request switchRequest
	restore func() // if not nil, the understudy boots the kernel that was asked for
	done    chan error
	result  *lastTakeover
}

// ordered passes a switch on to guard, and waits until it is done.
func (c *control) ordered(ctx context.Context, r switchRequest) (*lastTakeover, error) {
	o := &order{request: r, done: make(chan error, 1)}
	c.mu.Lock()
	var err error
	switch {
	case c.order != nil:
		err = errors.New("a switch is under way")
	case c.stopping || c.stopped:
		err = errGoesDown
	case c.status.State != "protected":
		err = fmt.Errorf("the pair is %s: a switch needs an understudy that is ready", c.status.State)
	default:
		c.order = o
		c.wake()
	}
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case err := <-o.done:
		return o.result, err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// answerOrder ends the current order, if there is one.
func (c *control) answerOrder(result *lastTakeover, err error) {
	c.mu.Lock()
	o := c.order
	c.order = nil
	c.mu.Unlock()
	if o == nil {
		return
	}
	if err != nil && o.restore != nil {
		o.restore()
		err = fmt.Errorf("nothing has changed: the understudy does not come up with %s: %w", o.request.Kernel, err)
	}
	o.result = result
	o.done <- err
}

// woken does what guard was woken for. The error is supervisor.Died, or what ends the pair.
func (c *control) woken(ctx context.Context, out io.Writer) error {
	c.mu.Lock()
	o := c.order
	c.mu.Unlock()
	active, understudy := c.s.Sides()
	switch {
	case understudy.Name == "" && o == nil:
		return nil
	case understudy.Name == "":
		c.answerOrder(nil, errors.New("the understudy died"))
		return nil
	case o == nil:
		c.set("protected", nil)
		fmt.Fprintln(out, "the pair is protected again")
		c.tell(events.Protected, "", "again", nil)
		return nil
	case o.request.Kernel != "" && o.restore == nil:
		o.restore = c.s.Equip(1-c.s.ActiveIndex(), supervisor.Kernel{Image: o.request.Kernel, Initramfs: o.request.Initramfs})
		err := c.s.LoseUnderstudy()
		c.set("unprotected", nil)
		fmt.Fprintf(out, "partition %s boots %s\n", understudy.Name, o.request.Kernel)
		c.tell(events.Unprotected, metrics.Switch, fmt.Sprintf("partition %s boots %s", understudy.Name, o.request.Kernel), nil)
		if err != nil { // the active side serves in any case
			c.note(err)
			fmt.Fprintln(out, err)
		}
		return nil
	}
	fmt.Fprintf(out, "switch from %s to %s\n", active.Name, understudy.Name)
	return c.switchOver(ctx, out, o)
}

// switchOver makes the understudy take over in good order.
func (c *control) switchOver(ctx context.Context, out io.Writer, o *order) error {
	c.mu.Lock()
	current := c.order == o
	if current {
		c.status.State = "switching"
	}
	c.mu.Unlock()
	if !current { // the order was answered meanwhile
		return nil
	}
	c.set("switching", nil)
	c.tell(events.Switching, "", "", nil)
	began := time.Now()
	report, err := c.s.Switch(context.WithoutCancel(ctx))
	var stays *supervisor.NotSwitched
	var died *supervisor.Died
	switch {
	case report != nil:
		t := &lastTakeover{At: began, Report: *report, Steps: report.Timeline.Steps()}
		c.changed(out, t, metrics.Switch, err)
		if o.request.Kernel != "" {
			c.s.Equip(1-c.s.ActiveIndex(), supervisor.Kernel{Image: o.request.Kernel, Initramfs: o.request.Initramfs})
		}
		c.answerOrder(t, nil)
		return nil
	case errors.As(err, &died):
		return err // the takeover will answer the order
	case errors.As(err, &stays):
		c.set("protected", nil)
		fmt.Fprintln(out, err)
		c.tell(events.Error, metrics.Switch, err.Error(), nil)
		c.tell(events.Protected, "", "as before the switch", nil)
		c.answerOrder(nil, err)
		return nil
	}
	c.answerOrder(nil, err)
	return err
}

func switchCommand() *cobra.Command {
	var r switchRequest
	cmd := &cobra.Command{
		Use:   "switch [PAIR]",
		Short: "Have the understudy take over in good order",
		Long: `Have the understudy take over in good order.

The active side writes what is unsaved, stops its services and unmounts its disks; the
understudy mounts them and starts the services. Then the side that is free boots as the
new understudy. If the active side cannot stop, it goes on as before.

The exit status is 4 if it has taken over, and a service of it did not come up, or the network
does not reach it yet.

With --kernel the understudy boots that kernel first, and rehearses with it; if that
fails, nothing has changed. After the switch both sides run it. The description of the
pair is not edited: do that before the next up.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, path := range []*string{&r.Kernel, &r.Initramfs} {
				if *path == "" {
					continue
				}
				abs, err := filepath.Abs(*path)
				if err != nil {
					return err
				}
				*path = abs
			}
			if r.Initramfs != "" && r.Kernel == "" {
				return errors.New("--initramfs goes with --kernel: the modules in it are those of one kernel")
			}
			var t lastTakeover
			if err := ask(cmd.Context(), first(args), verbSwitch, r, &t); err != nil {
				return err
			}
			return errors.Join(t.write(cmd.OutOrStdout()), t.alarm())
		},
	}
	cmd.Flags().StringVar(&r.Kernel, "kernel", "", "boot this `bzImage` on both sides from now on")
	cmd.Flags().StringVar(&r.Initramfs, "initramfs", "", "its initramfs; default: that of each partition")
	return cmd
}
