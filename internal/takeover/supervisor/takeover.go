package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"

	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/takeover"
)

// TakeOver makes the understudy the active side. With a report and an error both,
// it has, and something is left to be said about it. Without a report the takeover has
// failed: both sides are ended then, unless the fence could not be proven, so that
// nothing has the disks, and their memory is kept.
func (s *Supervisor) TakeOver(ctx context.Context, v liveness.Verdict) (*takeover.Report, error) {
	if s.understudy == nil {
		return nil, s.giveUp(errors.New("take over: no understudy is left, the pair was unprotected"))
	}
	zero := s.crashed
	if zero.IsZero() {
		zero = s.active.lastSign()
	}
	t := takeover.NewTimeline(zero)
	t.Add("detect", zero, v.At)
	m := &machine{s: s, heir: s.understudy}
	defer m.drop()
	hctx, stop := s.watchHeir(ctx)
	defer stop()
	serving, err := takeover.Run(hctx, m, t, s.takeoverOptions())
	if err != nil && m.proof == nil {
		return nil, err // it may still write: nothing is touched
	}
	if err != nil {
		stop() // it looks at the beat of what is to be ended
		m.drop()
		return nil, s.giveUp(err)
	}
	dead := s.active
	s.active, s.understudy = s.understudy, nil
	if err := s.record(func(r *Record) {
		*r = Record{Pair: r.Pair, Active: s.active.name, Disks: r.Disks}
		for i := range r.Disks {
			r.Disks[i].Progress = ""
		}
	}); err != nil {
		return serving.Report, err
	}
	if err := serving.Settle(hctx); err != nil {
		return serving.Report, fmt.Errorf("%w: what was brought over is not durable yet, so the dead side's memory is kept in %s", err, dead.process.Spec.RAMPath())
	}
	if len(serving.Refused) > 0 {
		return serving.Report, nil // what was refused is in that memory, and nowhere else
	}
	return serving.Report, s.bury(dead)
}

func (s *Supervisor) takeoverOptions() takeover.Options {
	o := takeover.Options{
		SyncFirst: s.Pair.Takeover.Sync == pair.SyncBefore, Fenced: s.options.Fenced,
		Witness: s.witness(), Notice: notice(s.Pair),
		Record: func(disk string, p takeover.Progress) error {
			err := s.record(func(r *Record) {
				r.Heir = s.understudy.name
				for i := range r.Disks {
					if r.Disks[i].Name == disk {
						r.Disks[i].Progress = p
					}
				}
			})
			if s.options.Progress != nil {
				s.options.Progress(disk, p)
			}
			return err
		},
	}
	for _, d := range s.Pair.Disks {
		o.Disks = append(o.Disks, d.Name)
	}
	if s.Pair.Takeover.Salvage {
		o.Salvager = s.morgue
	}
	return o
}

// watchHeir gives a context that ends, with the reason, if the understudy dies while it
// takes over.
func (s *Supervisor) watchHeir(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	heir := s.understudy
	done := make(chan struct{})
	go func() {
		defer close(done)
		if v, err := heir.watch(ctx, patient(s.Pair.Heartbeat), func(string) {}); err == nil {
			cancel(fmt.Errorf("the understudy died in the takeover: %s", v))
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-done
	}
}

// giveUp ends both sides, so that nothing has the disks any more, and keeps their
// memory. It returns why, with what to do.
func (s *Supervisor) giveUp(why error) error {
	errs := []error{why}
	for _, sd := range s.sides {
		errs = append(errs, sd.end())
	}
	errs = append(errs, s.release(), s.record(func(r *Record) { r.Why = why.Error() }))
	if s.dir.AtStake() {
		errs = append(errs, &Unsaved{Dir: s.dir.Path, Record: s.dir.Record})
	}
	return errors.Join(errs...)
}

// release lets go of all disks.
func (s *Supervisor) release() error {
	var errs []error
	for _, h := range s.holds {
		errs = append(errs, h.Close())
	}
	s.holds = nil
	return errors.Join(errs...)
}

// bury lets a dead side's memory go, once all of it is durable elsewhere.
func (s *Supervisor) bury(dead *side) error {
	return errors.Join(s.closeMorgue(), os.Remove(dead.process.Spec.RAMPath()))
}

func (s *Supervisor) closeMorgue() error {
	if s.morgue == nil {
		return nil
	}
	m := s.morgue
	s.morgue = nil
	return m.Close()
}
