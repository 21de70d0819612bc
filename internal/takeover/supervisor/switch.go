package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/takeover"
)

// Died means that something was not done because the active side died meanwhile.
type Died struct{ Verdict liveness.Verdict }

func (d *Died) Error() string { return "the active side died: " + d.Verdict.String() }

// Switch hands the service over to the understudy in good order: the active side stops its
// services, unmounts its disks, and ends. The error is a *NotSwitched if the pair is as
// before, or if its active side has died (Died). With another error and no report, both
// sides are ended, and everything is on the disks.
func (s *Supervisor) Switch(ctx context.Context) (*takeover.Report, error) {
	if s.understudy == nil {
		return nil, &NotSwitched{errors.New("there is no understudy to hand over to")}
	}
	// Unsaved data is written while the services still run, and not during the outage.
	if err := s.watched(ctx, func(ctx context.Context) error { return s.active.save(ctx, saveLimit) }); err != nil {
		return nil, &NotSwitched{err}
	}
	t := takeover.NewTimeline(time.Now())
	if err := t.Measure("stop", func() error { return s.watched(ctx, s.halt) }); err != nil {
		return nil, &NotSwitched{err}
	}
	return s.handOver(ctx, t, s.takeoverOptions())
}

// NotSwitched means that the service stays where it is.
type NotSwitched struct{ Err error }

func (n *NotSwitched) Error() string {
	return fmt.Sprintf("the service stays where it is: %v", n.Err)
}

func (n *NotSwitched) Unwrap() error { return n.Err }

// watched runs do while it watches the active side, and fails with Died if that dies.
func (s *Supervisor) watched(ctx context.Context, do func(context.Context) error) error {
	return s.watcherOf(s.active).during(ctx, do)
}

// during runs do while it watches the side, and fails with Died if that dies.
func (w *watcher) during(ctx context.Context, do func(context.Context) error) error {
	wctx, stop := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if v, err := w.watch(wctx); err == nil {
			stop(&Died{v})
		}
	}()
	err := do(wctx)
	var died *Died
	if errors.As(context.Cause(wctx), &died) {
		err = died
	}
	stop(nil)
	<-done
	return err
}

// Kernel is what a partition boots.
type Kernel struct {
	Image     string // path of a bzImage
	Initramfs string // path; empty means as before
}

// Equip makes partition i boot another kernel the next time it starts. It returns a
// function that takes that back. Neither may be called while Protect runs.
func (s *Supervisor) Equip(i int, k Kernel) (restore func()) {
	p := &s.Pair.Partitions[i]
	before := *p
	p.Kernel = k.Image
	if k.Initramfs != "" {
		p.Initramfs = k.Initramfs
	}
	return func() { *p = before }
}

// ActiveIndex returns the index of the partition that serves.
func (s *Supervisor) ActiveIndex() int { return s.active.index }
