package supervisor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"understudy.dev/understudy/internal/live/wire"
)

// stopLimit is how long the active side may take to unmount its disks and to mount them again,
// beside what its services may take. saveLimit is how long it may take to write what is unsaved,
// gigabytes on a slow disk; unitLimit is how long Debian's PostgreSQL lets a stop take
// (postgresql@.service, TimeoutStopSec=): systemd ends each by itself.
const (
	stopLimit = 90 * time.Second
	saveLimit = 10 * time.Minute
	unitLimit = time.Hour
)

// Stop has the active side write what is unsaved while its services run, stop them, and unmount
// its disks. If it fails, they are mounted and started again: the pair is as it was. ctx ends if
// the side has died.
func (s *Supervisor) Stop(ctx context.Context) error {
	active, _ := s.roles()
	if err := active.save(ctx, saveLimit); err != nil {
		return err
	}
	return s.halt(ctx)
}

// halt is the part of Stop after which nobody is served.
func (s *Supervisor) halt(ctx context.Context) error {
	if err := s.record(func(r *Record) { r.Stopping = true }); err != nil {
		return err
	}
	active, _ := s.roles()
	err := s.stopLimited(ctx, active)
	switch {
	case err == nil:
		return s.record(func(r *Record) { r.Saved, r.Stopping = true, false })
	case ctx.Err() != nil: // it is dead
		return errors.Join(err, context.Cause(ctx))
	}
	return errors.Join(err, s.resume(context.WithoutCancel(ctx), active))
}

// resume has a side that was to stop, and has not, go back to its work.
func (s *Supervisor) resume(ctx context.Context, sd *side) error {
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	if err := s.serve(ctx, sd); err != nil {
		err = fmt.Errorf("partition %s was to stop its services, and could not go back to its work: %w", sd.name, err)
		s.trouble(wire.TroubleNotice{What: err.Error()})
		return err
	}
	return s.record(func(r *Record) { r.Stopping = false })
}

// stopLimited has a side stop within a limit: what its services may take, and stopLimit.
func (s *Supervisor) stopLimited(ctx context.Context, sd *side) error {
	limit := stopLimit
	for _, v := range s.Pair.Services {
		if v.Unit != "" {
			limit += unitLimit
		} else {
			limit += v.Stop
		}
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return sd.stop(ctx)
}

// save has a side write what is unsaved, within a limit. It goes on writing after that.
func (sd *side) save(ctx context.Context, limit time.Duration) error {
	if err := sd.reach(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("partition %s has not written within %v what is unsaved, and goes on writing: try again later", sd.name, limit))
	defer cancel()
	return sd.agent.Call(ctx, wire.Sync, nil, nil)
}

// Discard says that what is in memory only is not wanted: Close removes it.
func (s *Supervisor) Discard() error {
	return s.record(func(r *Record) { r.Saved, r.Kept, r.Dead = true, nil, nil })
}

// Abandon has Close keep what is in memory only, for this reason. What can be made
// durable is, by sync(2) in the guest, so that only what is written later is missing on
// the disks if the memory is lost.
func (s *Supervisor) Abandon(ctx context.Context, why error) error {
	active, _ := s.roles()
	if err := active.save(ctx, stopLimit); err != nil { // its memory has it
		s.log("partition %s: what is unsaved could not be written before its end: %v", active.name, err)
	}
	return s.record(func(r *Record) { r.Why = why.Error() })
}

// Close ends both sides at once and removes every file and tap of theirs; but the
// memory and the logs stay if data may be in it that is not on the disks. To end a pair
// with nothing left behind, Stop it first.
func (s *Supervisor) Close() error {
	errs := []error{s.closeMorgue()}
	s.powerOff()
	for _, sd := range s.sides {
		if sd != nil {
			errs = append(errs, sd.end())
		}
	}
	if s.staging != nil {
		errs = append(errs, s.staging.Close())
	}
	if s.recorded().Saved { // a root disk may still lack something
		for i := range s.Pair.Partitions {
			errs = append(errs, s.rescueRoot(context.Background(), i))
		}
	}
	errs = append(errs, s.release())
	if s.dir.AtStake() {
		errs = append(errs, &Unsaved{Dir: s.dir.Path, Record: s.dir.Record}, s.dir.Close())
	} else {
		errs = append(errs, s.dir.Remove())
	}
	return errors.Join(errs...)
}

// powerOffLimit is how long a system of its own may take to end in good order.
const powerOffLimit = 2 * time.Minute

// powerOff has the sides that run a system of their own end it, so that all of it is on their
// root disks, unless something is in memory only: then all is to stay as it is.
func (s *Supervisor) powerOff() {
	if s.dir.Record != nil && !s.dir.Record.Saved {
		return
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), powerOffLimit, fmt.Errorf("not done within %v", powerOffLimit))
	defer cancel()
	var g sync.WaitGroup
	for _, sd := range s.sides {
		if sd == nil || sd.process == nil || sd.greeting.BootID == "" || s.Pair.Partitions[sd.index].Root == "" {
			continue // it has not come up, or has nothing of its own
		}
		g.Go(func() {
			if err := sd.powerOff(ctx); err != nil {
				s.log("root disk of partition %s: what was not written is lost, as after any crash: %v", sd.name, err)
			}
		})
	}
	g.Wait()
}

// powerOff returns when the side's process has ended.
func (sd *side) powerOff(ctx context.Context) error {
	select {
	case <-sd.process.Ended(): // it was dead before
		return nil
	default:
	}
	if err := sd.reach(ctx); err != nil {
		return fmt.Errorf("power it off: %w", err)
	}
	// A system that ends may take the answer with it.
	asked := sd.agent.Call(ctx, wire.PowerOff, nil, nil)
	if asked != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, endLimit, asked)
		defer cancel()
	}
	select {
	case <-sd.process.Ended():
		if err := sd.process.Status(); err != nil { // QEMU's is 0 if its guest ends itself
			return fmt.Errorf("power it off: %w", errors.Join(err, asked))
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("power it off: %w", context.Cause(ctx))
	}
}
