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

// Protect gives the active side an understudy: the partition that nothing runs in boots,
// and rehearses. It tries again, after pauses that grow, until it has come through or ctx
// ends; tell hears of each attempt that failed. Watch may run meanwhile, and the active side
// may die; TakeOver and Switch wait for the end of Protect.
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

// rest is the pause before an attempt. It ends when the active side dies: a takeover waits for that attempt.
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

// protect is one attempt.
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
	err := s.keepPair() // a switch may have given it another kernel
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

// prepareFor has the active kernel found in its memory, unless it was. A side that is dead already is
// taken over from all the same, without what is in its memory only.
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
// or an earlier one. Its memory is needed no more: what counted of it is durable elsewhere, but
// for its root disk, which comes first, and for what was refused, which is kept. If ctx ends
// before, all of it stays, and is done the next time.
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

// keepDead gives the memory of a dead side a name that no partition's file has, if something
// needs it. It has both names until the record knows the new one.
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

// dead is the side that was taken over from, if its memory is needed.
func (s *Supervisor) dead() *DeadSide { return s.recorded().Dead }

// Kept is memory of sides that died before, with what could not be brought to the disks.
func (s *Supervisor) Kept() []KeptMemory { return s.recorded().Kept }

// linkKept gives a side's memory a name that no partition's file has. A supervisor that was killed may have done so
// and not recorded it.
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

// rescuedRoot is the root disk of partition i that is to have what only its memory has of it;
// empty: it has none, or nobody can do that.
func (s *Supervisor) rescuedRoot(i int) string {
	if s.options.Rescue == nil {
		return ""
	}
	return s.Pair.Partitions[i].Root
}

// rescueRoot brings to a dead side's own root disk what only its memory has of it. It
// boots without, as after any crash, if that cannot be done, and its memory is kept if there is room for that and the next
// one; but if ctx ends before it is, or it was broken off in between, it fails, and is to be done again.
func (s *Supervisor) rescueRoot(ctx context.Context, i int) error {
	p, dead := s.Pair.Partitions[i], s.dead()
	if dead == nil || dead.Name != p.Name || dead.Root == "" || s.options.Rescue == nil {
		return nil // or it is kept with what it has
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

// rescue brings to the root disk of partition i what its memory has of it. Nobody holds it then.
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

// keepRoot records that the memory of partition i has what its root disk may lack, if somebody can bring
// that there.
func (s *Supervisor) keepRoot(i int) error {
	root := s.rescuedRoot(i)
	if root == "" || s.discarded || !s.recorded().Saved {
		return nil
	}
	d := DeadSide{Name: s.Pair.Partitions[i].Name, Root: root}
	return s.record(func(r *Record) { r.Kept = append(r.Kept, KeptMemory{File: s.dir.RAM(d.Name), Why: d.kept()}) })
}

// rescueRoots does it for all partitions, none of which runs any more or is to boot: memory of which
// it fails stays, and is recorded.
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

// Freeze stops a dead side where it is, until there is an understudy to take over. That is recorded
// first, so that another supervisor knows who has stopped it.
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

// crashLoop makes pauses before a pair is protected again, if it does not stay so.
type crashLoop struct {
	since time.Time // of the protection; the zero value: there was none yet
	wait  time.Duration
}

const (
	// calm is how long a pair has to stay protected so that the next crash is not one of
	// a loop.
	calm     = 10 * time.Second
	maxPause = time.Minute
	minPause = time.Second
)

func (c *crashLoop) protected(now time.Time) { c.since = now }

// failed makes the next pause longer.
func (c *crashLoop) failed() { c.wait, c.since = min(max(2*c.wait, minPause), maxPause), time.Time{} }

// pause is how long to wait before the next attempt.
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
