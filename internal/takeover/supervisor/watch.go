package supervisor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/qmp"
	"understudy.dev/understudy/internal/live/wire"
)

// dyingMessages are the events of QEMU by which a dying kernel tells of its panic (pvpanic,
// docs/specs/pvpanic.txt in QEMU).
var dyingMessages = []string{qmp.EventGuestPanicked, qmp.EventGuestCrashloaded}

// word is one of the side's beat page.
func (sd *side) word(offset int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&sd.beat[offset]))
}

// counter is a counter of the side's beat page.
func (sd *side) counter(offset int) uint64 { return sd.word(offset).Load() }

// pace has the side beat that seldom, or, with zero, as often as it is configured to.
func (sd *side) pace(period time.Duration) {
	if before := sd.word(liveness.PaceOffset).Swap(uint64(period)); before > uint64(period) {
		sd.rested = sd.counter(liveness.CounterOffset)
	}
}

// lastSign is when the side was last seen to beat, or now.
func (sd *side) lastSign() time.Time {
	if at := sd.beaten.Load(); at != nil {
		return *at
	}
	return time.Now()
}

// Death is that of one side of a pair.
type Death struct {
	liveness.Verdict
	Understudy bool // of the side that does not serve
}

// Watch returns when a side is found dead, or with ctx's error.
func (s *Supervisor) Watch(ctx context.Context) (Death, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type found struct {
		Death
		err error
	}
	watched := make(chan found, 3)
	n := 0
	watch := func(w *watcher, understudy bool) {
		n++
		go func() {
			v, err := w.watch(ctx)
			watched <- found{Death{v, understudy}, err}
		}()
	}
	watch(s.watcherOf(s.active), false)
	if s.understudy != nil {
		w := s.watcherOf(s.understudy)
		s.understudy.pace(rest(w.h)) // it has nothing else to do
		watch(w, true)
		go s.findAgain(ctx) // not waited for: a kernel is looked for in all of its memory. Without an understudy Protect does it
	}
	go s.trimConsoles(ctx)
	go s.watchPaths(ctx, s.disks()) // not waited for: a path may be on a file system that hangs
	n++
	go func() {
		v, err := s.watchPorts(ctx)
		watched <- found{Death{v, true}, err}
	}()
	first := <-watched
	cancel()
	for range n - 1 { // nobody looks at the beat pages any more when this returns
		if other := <-watched; other.err == nil && !other.Understudy {
			first = other // the one that has to be acted upon
		}
	}
	return first.Death, first.err
}

// trimEvery is how often the logs of consoles are kept within bounds.
const trimEvery = 2 * time.Second

func (s *Supervisor) trimConsoles(ctx context.Context) {
	every(ctx, trimEvery, func() {
		s.mu.Lock()
		sides := s.sides
		s.mu.Unlock()
		for _, sd := range sides {
			if sd == nil {
				continue
			}
			if err := sd.process.TrimConsole(); err != nil {
				s.log("bound the console's log of partition %s: %v", sd.name, err)
			}
		}
	})
}

// patient is how the understudy is watched. Nobody waits for it, and to lose it costs the
// protection: it may be late by much more.
func patient(h pair.Heartbeat) pair.Heartbeat {
	h.Limit = max(10*h.Limit, 3*time.Second)
	return h
}

// rest is how seldom an understudy beats that is watched so: seldom for its limit, and not as seldom as what
// stands still.
func rest(h pair.Heartbeat) time.Duration { return min(h.Limit/liveness.PulsesPerLimit, heldAfter/2) }

// held passes on why a side stands still.
func (s *Supervisor) held(understudy bool, why string) {
	if s.options.Held != nil {
		s.options.Held(understudy, why)
	}
}

// LoseUnderstudy ends an understudy that was found dead: the pair is unprotected, until
// Protect has come through.
func (s *Supervisor) LoseUnderstudy() error {
	s.mu.Lock()
	dead := s.understudy
	s.understudy = nil
	s.mu.Unlock()
	left := DeadSide{Name: dead.name, Root: s.rescuedRoot(dead.index)}
	return errors.Join(dead.end(), s.needDead(left, func(r *Record) { r.Understudy = "" }))
}

// watcherOf watches a side in its role.
func (s *Supervisor) watcherOf(sd *side) *watcher {
	h, understudy := s.Pair.Heartbeat, sd != s.active
	w := &watcher{side: sd, began: time.Now(), h: h, trouble: s.trouble, panicked: s.panicked, hostReads: s.hostReads, room: s.hasRoom}
	w.held = func(why string) { s.held(understudy, why) }
	if understudy {
		w.h, w.panicked = patient(h), nil
	}
	w.fatal = !understudy && s.Pair.Takeover.Degraded == pair.DegradedTakeOver
	w.silencer = liveness.NewSilencer(w.h.Period, w.h.Limit)
	sd.pace(0)
	if sd.rested > 0 && sd.counter(liveness.CounterOffset) == sd.rested {
		w.silencer.FirstWithin(patient(h).Limit)
	}
	add := func(limit time.Duration, pulses ...liveness.Pulse) {
		for _, p := range pulses {
			if limit > 0 {
				period := limit / liveness.PulsesPerLimit
				w.pulses = append(w.pulses, &pulse{Pulse: p, period: period, limit: limit, silencer: liveness.NewSilencer(period, limit)})
			}
		}
	}
	add(h.CPU, liveness.CPUPulses(sd.spec.VCPUs)...)
	add(h.Scheduler, liveness.SchedulerPulse())
	var disks []string
	for _, d := range s.Pair.Disks {
		disks = append(disks, d.Name)
	}
	add(h.Disk, liveness.DiskPulses(disks)...)
	return w
}

// trouble passes on what an agent says.
func (s *Supervisor) trouble(t wire.TroubleNotice) {
	if s.options.Trouble != nil {
		s.options.Trouble(t)
	}
}

// panicked says whether the active kernel's memory says that it is in panic().
func (s *Supervisor) panicked() (cpu int, yes bool) {
	s.mu.Lock()
	m := s.morgue
	s.mu.Unlock()
	if m == nil {
		return 0, false
	}
	return m.Panicked()
}

// watch looks at the side every period, and listens for the dying message, the end of the
// process, and what its agent says. It returns at the first sign of death, or with ctx's
// error.
func (w *watcher) watch(ctx context.Context) (liveness.Verdict, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sd := w.side
	if sd.died != nil {
		v := *sd.died
		v.At = time.Now()
		return v, nil
	}
	dying := sd.listen(ctx)
	tick := time.NewTicker(w.h.Period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return liveness.Verdict{}, context.Cause(ctx)
		case v := <-dying:
			return v, nil
		case <-sd.process.Ended():
			return liveness.Verdict{
				Cause: liveness.ProcessGone, At: time.Now(),
				Detail: fmt.Sprintf("partition %s ended: %s", sd.name, sd.ending()),
			}, nil
		case t := <-sd.troubles:
			w.trouble(t)
			if w.fatal && t.Ends == "" {
				return liveness.Verdict{Cause: liveness.Degraded, At: time.Now(), Detail: t.What}, nil
			}
		case <-tick.C:
			if v, dead := w.look(ctx); dead {
				return v, nil
			}
			if v, dead := w.lookAtPulses(ctx); dead {
				return v, nil
			}
			if v, dead := w.lookForAgent(time.Now()); dead {
				return v, nil
			}
		}
	}
}

// listen passes the dying message on. The partition is frozen at once: a kernel with kdump
// loaded goes on to boot its crash kernel, which must not get to the disks before the fence.
func (sd *side) listen(ctx context.Context) <-chan liveness.Verdict {
	dying := make(chan liveness.Verdict, 1)
	if sd.process.QMP == nil { // it had ended when we came
		return dying
	}
	go func() {
		for e, err := range sd.process.QMP.Events(ctx) {
			if err != nil {
				return // the process has ended, which is a sign of its own
			}
			sd.followPort(e)
			if slices.Contains(dyingMessages, e.Name) {
				sd.process.Freeze()
				dying <- liveness.Verdict{
					Cause: liveness.DyingMessage, At: time.Now(),
					Detail: "the kernel of partition " + sd.name + " panicked",
				}
				return
			}
		}
	}()
	return dying
}

// whileAlive has a side that nobody watches yet do something, and breaks that off if its kernel
// tells of its death: it would not answer, and be waited for.
func (sd *side) whileAlive(ctx context.Context, do func(context.Context) error) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var died atomic.Pointer[liveness.Verdict]
	dying := sd.listen(ctx)
	go func() {
		select {
		case v := <-dying:
			died.Store(&v)
			end(errors.New(v.Detail))
		case <-ctx.Done():
		}
	}()
	err := do(ctx)
	if v := died.Load(); err != nil && v != nil {
		return fmt.Errorf("%s; the end of its console:\n%s", v.Detail, tail(sd.process.Spec.ConsoleLogPath()))
	}
	return err
}

// watcher observes a side, and does not take for its death what others do to it.
type watcher struct {
	side      *side
	began     time.Time
	silencer  *liveness.Silencer // of the beat
	pulses    []*pulse
	h         pair.Heartbeat
	held      func(why string)
	trouble   func(wire.TroubleNotice)
	fatal     bool               // what is in trouble is as good as dead
	panicked  func() (int, bool) // nil: nobody knows
	hostReads func(disk string) bool
	room      func() bool // of what the images are on

	panics bool // it did when last looked at
	alone  bool // its agent is gone, and that was told

	why   string    // what keeps it from running; empty: nothing
	since time.Time // of why
	tried time.Time // when QEMU was last asked to go on
	tries int       // how often in a row, with room
	asked time.Time // when lookForHold last did
}

const (
	// answerWithin is how long QEMU may take to say what state it is in, so that its
	// partition's silence counts. On a busy machine it is tens of ms.
	answerWithin = 500 * time.Millisecond
	// qemuLimit is how long QEMU may answer nothing before it is hung itself.
	qemuLimit = 10 * time.Second
	// heldAfter is how long a partition whose silence does not count may be silent before it is
	// looked for what keeps it, and how often.
	heldAfter = 2 * time.Second
	// contEvery is how often a partition that QEMU stopped for want of room is asked to
	// go on: there may be room again.
	contEvery = time.Second
	// maxTries is how often it is asked, with room, before it counts as one that never will.
	maxTries = 10
)

const (
	noAnswer   = "QEMU does not answer"
	notRunning = "its threads are stopped, or wait for this machine"
	// After a flush that failed, QEMU fails all others of that image without trying them, since what the
	// host had cached may be lost (block/file-posix.c, page_cache_inconsistent).
	noFlush = "QEMU has stopped it (io-error), and does so again though there is room: once a flush of an image has failed, QEMU fails all others"
)

// look takes one observation. What the process did is asked only when the beat
// stands still.
func (w *watcher) look(ctx context.Context) (liveness.Verdict, bool) {
	sd := w.side
	now := time.Now()
	sd.looked.Store(&now)
	if w.panicked != nil {
		cpu, yes := w.panicked()
		if yes && w.panics { // since a period, and no dying message has come
			sd.process.Freeze()
			return liveness.Verdict{Cause: liveness.PanicState, At: time.Now(), Detail: fmt.Sprintf("CPU %d of partition %s is in panic()", cpu, sd.name)}, true
		}
		w.panics = yes
	}
	o := liveness.Observation{At: time.Now(), Counter: sd.counter(liveness.CounterOffset)}
	if o.Counter != sd.counted {
		sd.counted = o.Counter
		sd.beaten.Store(&o.At)
		if time.Since(w.tried) > contEvery { // or else it may have no room again at once
			w.heldBy("")
			w.tries = 0
		}
		v, dead := w.silencer.Observe(o)
		sd.longest.Store(max(sd.longest.Load(), int64(w.silencer.Longest())))
		return v, dead
	}
	// An error means that the process is ending: that is seen elsewhere.
	o.Effort, _ = sd.process.Effort()
	v, dead := w.silencer.Observe(o)
	if !dead {
		w.lookForHold(ctx, o.At)
		return v, false
	}
	w.heldBy(w.ask(ctx))
	switch {
	case w.why == "":
		return v, true
	case w.why == noAnswer && time.Since(w.since) > qemuLimit:
		v.Detail = fmt.Sprintf("%s, and %s for %v", v.Detail, noAnswer, qemuLimit)
		return v, true
	}
	w.silencer = liveness.NewSilencer(w.h.Period, w.h.Limit)
	w.silencer.Observe(liveness.Observation{At: time.Now(), Counter: o.Counter})
	return liveness.Verdict{}, false
}

// lookForHold finds what keeps the partition from running while it is silent and none of that
// counts: its threads are frozen, stopped, or wait for this machine.
func (w *watcher) lookForHold(ctx context.Context, now time.Time) {
	beaten := read(&w.side.beaten)
	still := now.Sub(beaten)
	if watched := now.Sub(w.began); watched < still { // nobody looked before
		still = watched
	}
	if beaten.IsZero() || still < heldAfter || now.Sub(w.asked) < heldAfter {
		return
	}
	w.asked = now
	why := w.ask(ctx)
	if why == "" || why == noAnswer {
		if still <= qemuLimit {
			return
		}
		why = notRunning
	}
	w.heldBy(why)
}

// heldBy notes what keeps the partition from running.
func (w *watcher) heldBy(why string) {
	if why == w.why {
		return
	}
	w.why, w.since = why, time.Now()
	w.held(why)
}

// ask finds what else than its own kernel may keep a silent partition from running: it is
// frozen, or QEMU has stopped it, for want of room first of all.
func (w *watcher) ask(ctx context.Context) string {
	p := w.side.process
	if p.Frozen() {
		return "its control group is frozen"
	}
	qctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	st, err := p.QMP.QueryStatus(qctx)
	switch {
	case err != nil && errors.Is(qctx.Err(), context.DeadlineExceeded):
		return noAnswer
	case err != nil, st.Running, st.Status == "guest-panicked", st.Status == "shutdown", st.Status == "internal-error":
		return "" // the end of the process is seen elsewhere
	}
	if st.Status == "io-error" && time.Since(w.tried) > contEvery {
		w.tried = time.Now()
		if w.room() {
			w.tries++
		} else {
			w.tries = 0
		}
		_ = p.QMP.Cont(qctx) // it is tried again
	}
	if w.tries > maxTries {
		return noFlush
	}
	return fmt.Sprintf("QEMU has stopped it (%s)", st.Status)
}
