package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"understudy.dev/understudy/internal/live/wire"
)

// stopLimit is how long the active side may take to unmount its disks and to mount them again,
// in addition to what its services may take. saveLimit is how long it may take to write what is
// unsaved, which may be gigabytes on a slow disk. unitLimit is how long Debian's PostgreSQL lets
// a stop take (postgresql@.service, TimeoutStopSec=): systemd itself ends each service.
const (
	stopLimit = 90 * time.Second
	saveLimit = 10 * time.Minute
	unitLimit = time.Hour
)

// Stop makes the active side write what is unsaved while its services run, then stop them, and
// unmount its disks. If that fails, the disks are mounted and the services started again: the
// pair is as before. ctx must end if the side dies.
func (s *Supervisor) Stop(ctx context.Context) error {
	active, _ := s.roles()
	if err := active.save(ctx, saveLimit); err != nil {
		return err
	}
	return s.halt(ctx)
}

// StopAlone is Stop while nobody watches the pair: it fails with Died if the active side dies.
func (s *Supervisor) StopAlone(ctx context.Context) error {
	w := s.watcherOf(s.active)
	w.fatal = false // nobody would take over from a side in trouble
	return w.during(ctx, s.Stop)
}

// halt is the part of Stop that ends the service.
func (s *Supervisor) halt(ctx context.Context) error {
	active, _ := s.roles()
	if err := s.recordStop(ctx, func(r *Record) { r.Stopping = true }); err != nil {
		return err
	}
	err := s.stopLimited(ctx, active)
	switch {
	case err == nil:
		return s.recordStop(ctx, s.saved)
	case ctx.Err() != nil: // it is dead
		return errors.Join(err, context.Cause(ctx))
	}
	return errors.Join(err, s.resume(context.WithoutCancel(ctx), active))
}

// saved changes r, which is to be written, to say that the shared disks have everything. The root disks have not,
// before their systems are powered off.
func (s *Supervisor) saved(r *Record) {
	r.Saved, r.Stopping = true, false
	for i, p := range s.Pair.Partitions {
		if _, err := os.Stat(s.dir.RAM(p.Name)); s.rescuedRoot(i) != "" && !errors.Is(err, fs.ErrNotExist) {
			s.dir.RootLacks(r, p, nil)
		}
	}
}

// recordStop records how far the active side has stopped, unless ctx has ended, since the side is
// then taken over from.
func (s *Supervisor) recordStop(ctx context.Context, change func(*Record)) error {
	err := s.record(func(r *Record) {
		if ctx.Err() == nil {
			change(r)
		}
	})
	return errors.Join(err, context.Cause(ctx))
}

// resume lets a side that was to stop, and has not, go back to its work.
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

// stopLimited makes a side stop within a limit: what its services may take, plus stopLimit.
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

// save makes a side write what is unsaved, within a limit. The side goes on writing after that.
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

// Abandon makes Close keep what is in memory only, for the reason why. Before that, sync(2)
// in the guest makes durable what can be made durable, so that the disks lack only what is
// written later if the memory is lost. Nothing can be made durable if the side has died.
func (s *Supervisor) Abandon(ctx context.Context, why error) error {
	var died *Died
	if !errors.As(why, &died) {
		active, _ := s.roles()
		if err := active.save(ctx, stopLimit); err != nil {
			s.log("what can be made durable before the end is not: %v", err)
		}
	}
	return s.record(func(r *Record) { r.Why = why.Error() })
}

// Close ends both sides at once, and removes all their files and taps. If memory may have data that is
// not on the disks, the memory and the logs stay, and the error is an *Unsaved. To end a pair with
// nothing left behind, Stop it first.
func (s *Supervisor) Close() error {
	errs := []error{s.closeMorgue(), s.powerOff()}
	for _, sd := range s.sides {
		if sd != nil {
			errs = append(errs, sd.end())
		}
	}
	if s.staging != nil {
		errs = append(errs, s.staging.Close())
	}
	if s.recorded().Saved { // a root disk may still lack something
		errs = append(errs, s.rescueRoots())
	}
	errs = append(errs, s.release())
	if s.dir.AtStake() {
		errs = append(errs, &Unsaved{Dir: s.dir.Path, Record: s.dir.Record}, s.dir.Close())
	} else {
		errs = append(errs, s.dir.Remove())
	}
	return errors.Join(errs...)
}

// powerOffLimit is how long a side with its own root disk may take to shut down.
const powerOffLimit = 2 * time.Minute

// powerOff shuts down the sides that run a system from their own root disks, so that all their data is
// on those disks. It does nothing if something is in memory only: then everything is to stay as it is.
// The memory of a side that does not shut down stays recorded as kept, until its root disk is rescued.
func (s *Supervisor) powerOff() error {
	if s.dir.Record != nil && !s.dir.Record.Saved {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), powerOffLimit, fmt.Errorf("not done within %v", powerOffLimit))
	defer cancel()
	var g sync.WaitGroup
	var errs [2]error
	for i, sd := range s.sides {
		if sd == nil || sd.process == nil || sd.greeting.BootID == "" || s.Pair.Partitions[sd.index].Root == "" {
			continue // it has not come up, or has no root disk of its own
		}
		g.Go(func() {
			if err := sd.powerOff(ctx); err != nil {
				s.log("root disk of partition %s: what was not written is in memory only: %v", sd.name, err)
				return
			}
			errs[i] = s.record(func(r *Record) { s.dir.RootHas(r, s.Pair.Partitions[sd.index]) })
		})
	}
	g.Wait()
	return errors.Join(errs[:]...)
}

// powerOff shuts the side down, and returns when its process has ended.
func (sd *side) powerOff(ctx context.Context) error {
	select {
	case <-sd.process.Ended():
		return errors.New("power it off: it was dead already")
	default:
	}
	if err := sd.reach(ctx); err != nil {
		return fmt.Errorf("power it off: %w", err)
	}
	// The answer may be lost because the system ends.
	asked := sd.agent.Call(ctx, wire.PowerOff, nil, nil)
	if asked != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, endLimit, asked)
		defer cancel()
	}
	select {
	case <-sd.process.Ended():
		if err := sd.process.Status(); err != nil { // QEMU's status is 0 if its guest ends by itself
			return fmt.Errorf("power it off: %w", errors.Join(err, asked))
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("power it off: %w", context.Cause(ctx))
	}
}
