package supervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"understudy.dev/understudy/internal/live/fence"
	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/takeover"
)

// TakeOver makes the understudy the active side. If it returns both a report and an error,
// it has done so, and the error says what went wrong besides. Without a report the takeover
// has failed: both sides are ended, so that nothing has the disks, unless the fence could
// not be proven, and their memory is kept.
func (s *Supervisor) TakeOver(ctx context.Context, v liveness.Verdict) (*takeover.Report, error) {
	if s.understudy == nil {
		return nil, s.GiveUp(errors.New("take over: no understudy is left, the pair was unprotected"))
	}
	zero := s.crashed
	if zero.IsZero() {
		zero = s.active.lastSign()
	}
	t := takeover.NewTimeline(zero)
	t.Add("detect", zero, v.At)
	return s.handOver(ctx, t, s.salvagingOptions())
}

// salvagingOptions returns the options of a takeover from a dead side. If the side's memory
// cannot be opened, everything in it is refused, and the memory is kept.
func (s *Supervisor) salvagingOptions() takeover.Options {
	m, err := s.openMorgue()
	o := s.takeoverOptions()
	switch {
	case !s.Pair.Takeover.Salvage:
	case err != nil:
		o.Salvager = unopened{err}
	default:
		o.Salvager = m
	}
	return o
}

// unopened is the Salvager for memory that could not be opened.
type unopened struct{ err error }

func (u unopened) Examine(takeover.Image) (takeover.Remains, error) { return nil, u.err }

// handOver is what a takeover and a switch have in common.
func (s *Supervisor) handOver(ctx context.Context, t *takeover.Timeline, o takeover.Options) (*takeover.Report, error) {
	m := &machine{s: s, heir: s.understudy, layered: o.Layered, sizes: make(map[string]int64)}
	defer m.drop()
	hctx, stop := s.watchHeir(ctx)
	defer stop()
	serving, err := takeover.Run(hctx, m, t, o)
	if err != nil && m.proof == nil {
		return nil, err // the dead side may still write: nothing is touched
	}
	if err != nil {
		stop() // it reads the beat page of a side that is about to be ended
		m.drop()
		return nil, s.GiveUp(errors.Join(err, s.refuseUnstored(hctx)))
	}
	dead := s.active
	s.mu.Lock()
	s.active, s.understudy, s.crashed, s.frozen = s.understudy, nil, time.Time{}, false
	clear(s.lost) // it is reported anew
	s.mu.Unlock()
	select {
	case <-s.hurry: // a request because of this death
	default:
	}
	left := DeadSide{Name: dead.name, Root: s.rescuedRoot(dead.index), Why: "what was brought over may not have been durable yet when its supervisor ended"}
	serves := s.active.name
	errs := []error{s.needDead(left, func(r *Record) {
		r.Active, r.Heir, r.Understudy, r.Frozen, r.Saved, r.Stopping = serves, "", "", "", false, false
		r.Kept = s.withoutOwn(r.Kept)
		for i := range r.Disks {
			r.Disks[i].Progress, r.Disks[i].Refused = "", nil
		}
	})}
	err = serving.Settle(hctx)
	unstored := s.unstored(hctx, err)
	left.Why = ""
	if n := serving.Refusals(); n > 0 {
		left.Why = fmt.Sprintf("%d things were not brought to the disks, as the report of the takeover says", n)
	}
	if unstored != nil {
		err = fmt.Errorf("%w: what was brought over is not durable yet, so the memory of partition %s is kept", unstored, dead.name)
		left.because(err.Error())
	}
	errs = append(errs, err, s.needDead(left, func(*Record) {}), s.closeMorgue(), s.staging.Reset())
	return serving.Report, errors.Join(errs...)
}

// unstored returns why what was brought over may not be on the disks, after a sync by the heir that ended with err. If
// the heir has died, its memory has what it had not written yet, for the next takeover or recover. The files that it had
// written are not in its page cache: this machine must store them.
func (s *Supervisor) unstored(hctx context.Context, err error) error {
	if err == nil || hctx.Err() == nil {
		return err
	}
	return s.store(hctx, s.Pair.Disks...)
}

// store makes durable what QEMU has written to disks. It fails if a flush of QEMU's has failed: this machine's kernel
// then takes the data for written, but it reports the error on our descriptors, too (errseq_t).
func (s *Supervisor) store(hctx context.Context, disks ...pair.Disk) error {
	if why := context.Cause(hctx); errors.Is(why, errNoFlush) {
		return why
	}
	stored := make(chan error, 1)
	var holds []*fence.Hold
	for _, d := range disks {
		for _, image := range d.Images() {
			holds = append(holds, s.holds[image])
		}
	}
	go func() {
		var errs []error
		for _, h := range holds {
			errs = append(errs, h.Sync())
		}
		stored <- errors.Join(errs...)
	}()
	select {
	case err := <-stored:
		return err
	case <-time.After(saveLimit):
		return fmt.Errorf("store what was written to the disks: not done within %v", saveLimit)
	}
}

// refuseUnstored records, after a takeover that failed, which disks may lack something that was brought to them. Only
// the dead side's memory has that. It must not be written again: services may have changed the files since.
func (s *Supervisor) refuseUnstored(hctx context.Context) error {
	var errs []error
	for i, d := range s.recorded().Disks {
		if d.Progress != takeover.Applied {
			continue
		}
		if err := s.store(hctx, s.Pair.Disks[i]); err != nil {
			errs = append(errs, fmt.Errorf("what was brought to disk %s may not be on it, and stays in memory: %w", d.Name, err),
				s.record(func(r *Record) { r.Disks[i].Refused = new(true) }))
		}
	}
	return errors.Join(errs...)
}

// needDead records why the memory of a side that was taken over from is still needed, together
// with another change of the record. Until that is recorded, the side is not buried.
func (s *Supervisor) needDead(d DeadSide, change func(*Record)) error {
	s.recording.Lock()
	before := s.unrecorded
	s.unrecorded = func(r *Record) {
		if before != nil {
			before(r)
		}
		change(r)
		r.Dead = nil
		if d.Root != "" || d.Why != "" {
			r.Dead = &d
		}
	}
	s.recording.Unlock()
	return s.recordRest()
}

// recordRest records what could not be recorded before, as each change of the record does.
func (s *Supervisor) recordRest() error { return s.record(func(*Record) {}) }

// takeoverOptions returns the options of a takeover that has nothing to salvage from the active side.
func (s *Supervisor) takeoverOptions() takeover.Options {
	o := takeover.Options{
		SyncFirst: s.Pair.Takeover.Sync == pair.SyncBefore, Fenced: s.options.Fenced,
		StopIfRefused: s.Pair.Takeover.Refused == pair.RefusedStop,
		Witness:       s.witness(), Notice: notice(s.Pair),
		Record: func(disk string, p takeover.Progress, refused bool) error {
			err := s.record(func(r *Record) {
				r.Heir, r.Saved, r.Stopping = s.understudy.name, false, false
				for i := range r.Disks {
					if r.Disks[i].Name == disk {
						r.Disks[i].Progress, r.Disks[i].Refused = p, &refused
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
		if !s.seen(d) {
			o.Layered = append(o.Layered, d.Name)
		}
	}
	return o
}

// errNoFlush ends a takeover whose heir cannot write any more.
var errNoFlush = errors.New("the understudy stands still in the takeover: " + noFlush)

// watchHeir returns a context that ends, with the reason, if the understudy dies while it
// takes over, or cannot write any more.
func (s *Supervisor) watchHeir(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := s.watcherOf(s.understudy)
	w.held = func(why string) {
		s.held(false, why)
		if why == noFlush {
			cancel(errNoFlush)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if v, err := w.watch(ctx); err == nil {
			cancel(fmt.Errorf("the understudy died in the takeover: %s", v))
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-done
	}
}

// GiveUp ends both sides, so that nothing has the disks any more, and keeps their memory.
// It returns why, together with what to do.
func (s *Supervisor) GiveUp(why error) error {
	errs := []error{why}
	for _, sd := range s.sides {
		if sd != nil {
			errs = append(errs, sd.end())
		}
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
	for _, holds := range []map[string]*fence.Hold{s.holds, s.roots} {
		for _, h := range holds {
			errs = append(errs, h.Close())
		}
		clear(holds)
	}
	return errors.Join(errs...)
}

func (s *Supervisor) closeMorgue() error {
	s.mu.Lock()
	m := s.morgue
	s.morgue, s.prepared = nil, false
	s.mu.Unlock()
	if m == nil {
		return nil
	}
	return m.Close()
}
