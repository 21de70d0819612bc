package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy.dev/understudy/internal/live/fence"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
)

// Protect gives the active side an understudy: it boots the partition that nothing runs in,
// and lets it rehearse. It tries again, with growing pauses, until an attempt succeeds or
// ctx ends; tell gets the error of each attempt that failed. Meanwhile Watch may run, and
// the active side may die; TakeOver and Switch must wait for the end of Protect.
func (s *Supervisor) Protect(ctx context.Context, tell func(error)) error {
	for {
		if err := s.rest(ctx, s.crashLoop.pause(time.Now())); err != nil {
			return err
		}
		err := s.protect(ctx)
		if err == nil {
			s.crashLoop.protected(time.Now())
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		s.crashLoop.failed()
		tell(err)
	}
}

// rest pauses before an attempt. It returns early when the active side dies: a takeover waits for that attempt.
func (s *Supervisor) rest(ctx context.Context, pause time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-s.hurry:
	case <-time.After(pause):
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// protect makes one attempt.
func (s *Supervisor) protect(ctx context.Context) error {
	i := 1 - s.active.index
	if err := s.bury(ctx, i); err != nil {
		return fmt.Errorf("clear partition %s: %w", s.Pair.Partitions[i].Name, err)
	}
	if err := s.holdRoot(s.Pair.Partitions[i].Root, fence.Keep); err != nil {
		return err
	}
	if err := s.active.process.Withdraw(); err != nil {
		return err
	}
	if err := s.checkRoom(s.Pair.Partitions[i].Memory); err != nil {
		return err
	}
	var sd *side
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		if sd, err = s.boot(gctx, i, false); err != nil {
			return err
		}
		return s.fit(gctx, sd)
	})
	g.Go(func() error { return s.prepareFor(gctx) })
	if err := g.Wait(); err != nil {
		if sd != nil {
			err = errors.Join(err, sd.close())
		}
		return err
	}
	err := s.keepPair() // a switch may have changed its kernel
	if err == nil {
		err = s.record(func(r *Record) { r.Understudy = sd.name })
	}
	if err != nil {
		return errors.Join(err, sd.close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sides[i], s.understudy = sd, sd
	return nil
}

// prepareFor finds the active kernel in its memory, unless that is done. From a side that is dead
// already we take over in any case, if need be without what is in its memory only.
func (s *Supervisor) prepareFor(ctx context.Context) error {
	s.mu.Lock()
	prepared := s.prepared
	s.mu.Unlock()
	if prepared {
		return nil
	}
	err := s.prepare(ctx)
	s.mu.Lock()
	frozen := s.frozen
	s.mu.Unlock()
	if err != nil && frozen && ctx.Err() == nil {
		s.trouble(wire.TroubleNotice{What: err.Error()})
		return nil
	}
	return err
}

// bury removes what is left of the side that ran in partition i, if one did, under this supervisor
// or an earlier one. Its memory is no longer needed: everything of value in it is durable
// elsewhere, except for the data of its root disk, which is rescued first, and for what was
// refused, which is kept. If ctx ends before that, all of it stays, and is done the next time.
func (s *Supervisor) bury(ctx context.Context, i int) error {
	if err := s.recordRest(); err != nil {
		return err
	}
	if err := s.rescueRoot(ctx, i); err != nil {
		return err
	}
	spec := s.spec(i, "")
	if err := s.keepDead(&spec); err != nil {
		return err
	}
	var errs []error
	if err := os.Rename(spec.ConsoleLogPath(), filepath.Join(s.options.Dir, "died-"+spec.Name+".console.log")); !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	if dead := s.sides[i]; dead != nil {
		errs = append(errs, dead.close())
	} else {
		errs = append(errs, s.clear(i))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sides[i] = nil
	return errors.Join(errs...)
}

// keepDead gives the memory of a dead side a name that no partition uses, if the memory is
// still needed. The file has both names until the new one is recorded.
func (s *Supervisor) keepDead(spec *partition.Spec) error {
	dead := s.dead()
	if dead == nil || dead.Name != spec.Name {
		return nil
	}
	kept, err := s.linkKept(spec)
	if err != nil {
		return fmt.Errorf("keep the memory of partition %s: %w", spec.Name, err)
	}
	return s.record(func(r *Record) {
		r.Kept, r.Dead = append(r.Kept, KeptMemory{File: kept, Why: dead.kept()}), nil
	})
}

// dead returns the side that was taken over from, or nil if its memory is not needed.
func (s *Supervisor) dead() *DeadSide { return s.recorded().Dead }

// Kept returns the memory of sides that died before, with what could not be brought to the disks.
func (s *Supervisor) Kept() []KeptMemory { return s.withoutOwn(s.recorded().Kept) }

// withoutOwn leaves out the memory that partitions use now: it is recorded as kept while they stop.
func (s *Supervisor) withoutOwn(kept []KeptMemory) []KeptMemory {
	return slices.DeleteFunc(slices.Clone(kept), func(k KeptMemory) bool {
		return k.File == s.dir.RAM(s.Pair.Partitions[0].Name) || k.File == s.dir.RAM(s.Pair.Partitions[1].Name)
	})
}

// linkKept gives a side's memory a name that no partition uses. A supervisor that was killed may have done so
// already without recording it.
func (s *Supervisor) linkKept(spec *partition.Spec) (string, error) {
	memory, err := os.Lstat(spec.RAMPath())
	if err != nil {
		return "", err
	}
	for n := 1; ; n++ {
		path := filepath.Join(s.options.Dir, fmt.Sprintf("kept-%d-%s.ram", n, spec.Name))
		err := os.Link(spec.RAMPath(), path)
		if !errors.Is(err, os.ErrExist) {
			return path, err
		}
		if had, err := os.Lstat(path); err == nil && os.SameFile(had, memory) {
			return path, nil
		}
	}
}

// rescuedRoot returns the root disk of partition i that is to get what only its memory has;
// empty if there is none, or if there is no Options.Rescue.
func (s *Supervisor) rescuedRoot(i int) string {
	if s.options.Rescue == nil {
		return ""
	}
	return s.Pair.Partitions[i].Root
}

// rescueRoot brings to a dead side's own root disk what only its memory has. If that fails, the side boots without it,
// as after any crash, and its memory is kept if there is room for it and the next one. But if ctx has ended, or the
// disk is in between, rescueRoot fails, and is to be called again.
func (s *Supervisor) rescueRoot(ctx context.Context, i int) error {
	p, dead := s.Pair.Partitions[i], s.dead()
	if dead == nil || dead.Name != p.Name || dead.Root == "" || s.options.Rescue == nil {
		return nil // keepDead keeps the memory, if it is needed
	}
	err := s.rescue(ctx, i)
	if err != nil && (ctx.Err() != nil || errors.Is(err, takeover.ErrInBetween)) {
		return errors.Join(err, s.holdRoot(p.Root, fence.Keep))
	}
	after := DeadSide{Name: dead.Name, Why: dead.Why}
	if err != nil {
		end := "what was not written is kept in memory"
		if room := s.checkRoom(p.Memory); room == nil {
			after.because(fmt.Sprintf("it booted again without what its root disk, %s, lacks: %v", p.Root, err))
		} else {
			end = fmt.Sprintf("what was not written is lost, as after any crash, since its memory could not be kept: %v", room)
		}
		s.trouble(wire.TroubleNotice{What: fmt.Sprintf("%v: %s", err, end)})
	}
	return s.needDead(after, func(*Record) {})
}

// rescue brings to the root disk of partition i what only its memory has. It lets go of the disk for that.
func (s *Supervisor) rescue(ctx context.Context, i int) error {
	p := s.Pair.Partitions[i]
	var err error
	if h := s.roots[p.Root]; h != nil {
		delete(s.roots, p.Root)
		err = h.Close()
	}
	if err == nil {
		err = s.options.Rescue(ctx, p.Root, s.dir.RAM(p.Name))
	}
	if err != nil {
		err = fmt.Errorf("root disk of partition %s: %w", p.Name, err)
	}
	return err
}

// rescueRoots rescues the root disks of all partitions, none of which still runs or is to boot. If
// that fails, the memory stays, and is recorded.
func (s *Supervisor) rescueRoots() error {
	var errs []error
	for i, p := range s.Pair.Partitions {
		r := s.recorded()
		if s.options.Rescue == nil || !r.deadRoot(p) && !slices.ContainsFunc(r.Kept, s.dir.keptFor(p)) {
			continue
		}
		err := s.rescue(context.Background(), i)
		errs = append(errs, err, s.record(func(r *Record) {
			if err == nil {
				s.dir.RootHas(r, p)
			} else {
				s.dir.RootLacks(r, p, err)
			}
		}))
	}
	return errors.Join(errs...)
}

// Freeze stops a dead side until there is an understudy to take over. This is recorded first, so
// that another supervisor knows who has stopped the side.
func (s *Supervisor) Freeze() {
	s.mu.Lock()
	s.frozen = true
	s.mu.Unlock()
	select {
	case s.hurry <- struct{}{}:
	default:
	}
	if err := s.record(func(r *Record) { r.Frozen = s.active.name }); err != nil {
		s.log("record that partition %s is dead: %v", s.active.name, err)
	}
	s.active.process.Freeze()
}

// crashLoop determines the pauses before a pair is protected again, if it does not stay protected.
type crashLoop struct {
	since time.Time // when the pair was protected; zero if it never was
	wait  time.Duration
}

const (
	// calm is how long a pair has to stay protected for the next crash not to count as part
	// of a crash loop.
	calm     = 10 * time.Second
	maxPause = time.Minute
	minPause = time.Second
)

func (c *crashLoop) protected(now time.Time) { c.since = now }

// failed makes the next pause longer.
func (c *crashLoop) failed() { c.wait, c.since = min(max(2*c.wait, minPause), maxPause), time.Time{} }

// pause returns how long to wait before the next attempt.
func (c *crashLoop) pause(now time.Time) time.Duration {
	if !c.since.IsZero() {
		if now.Sub(c.since) < calm {
			c.failed()
		} else {
			c.wait = 0
		}
		c.since = time.Time{}
	}
	return c.wait
}
