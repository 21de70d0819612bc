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

// dyingMessages are the QEMU events by which a dying kernel reports its panic (pvpanic,
// docs/specs/pvpanic.txt in QEMU).
var dyingMessages = []string{qmp.EventGuestPanicked, qmp.EventGuestCrashloaded}

// word returns a word of the side's beat page.
func (sd *side) word(offset int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&sd.beat[offset]))
}

// counter returns a counter of the side's beat page.
func (sd *side) counter(offset int) uint64 { return sd.word(offset).Load() }

// pace makes the side beat with this period or, if it is 0, as often as configured.
func (sd *side) pace(period time.Duration) {
	if before := sd.word(liveness.PaceOffset).Swap(uint64(period)); before > uint64(period) {
		sd.rested = sd.counter(liveness.CounterOffset)
	}
}

// lastSign returns when the side was last seen to beat, or now if it never was.
func (sd *side) lastSign() time.Time {
	if at := sd.beaten.Load(); at != nil {
		return *at
	}
	return time.Now()
}

// Death is the death of one side of a pair.
type Death struct {
	liveness.Verdict
	Understudy bool // it was the side that does not serve
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
		s.understudy.pace(rest(w.h)) // the understudy has nothing else to do
		watch(w, true)
		go s.findAgain(ctx) // not waited for: it may search all memory for the kernel. Without an understudy, Protect does it
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
	for range n - 1 { // when Watch returns, nobody must read the beat pages any more
		if other := <-watched; other.err == nil && !other.Understudy {
			first = other // the active side's death is the one to act upon
		}
	}
	return first.Death, first.err
}

// trimEvery is how often the console logs are trimmed.
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

// patient returns how the understudy is watched. Nobody waits for it, and losing it costs
// the protection, so it may be late by much more than the active side.
func patient(h pair.Heartbeat) pair.Heartbeat {
	h.Limit = max(10*h.Limit, 3*time.Second)
	return h
}

// rest returns the beat period of an understudy that is watched like this: long, as its limit allows, but
// shorter than a side may stand still before we look for the reason.
func rest(h pair.Heartbeat) time.Duration { return min(h.Limit/liveness.PulsesPerLimit, heldAfter/2) }

// held passes on why a side stands still.
func (s *Supervisor) held(understudy bool, why string) {
	if s.options.Held != nil {
		s.options.Held(understudy, why)
	}
}

// LoseUnderstudy ends an understudy that was found dead. The pair is unprotected until
// Protect has succeeded.
func (s *Supervisor) LoseUnderstudy() error {
	s.mu.Lock()
	dead := s.understudy
	s.understudy = nil
	s.mu.Unlock()
	left := DeadSide{Name: dead.name, Root: s.rescuedRoot(dead.index)}
	return errors.Join(dead.end(), s.needDead(left, func(r *Record) { r.Understudy = "" }))
}

// watcherOf returns a watcher for a side in its role.
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

// trouble passes on what an agent reports.
func (s *Supervisor) trouble(t wire.TroubleNotice) {
	if s.options.Trouble != nil {
		s.options.Trouble(t)
	}
}

// panicked reports whether the active kernel is in panic(), as its memory says.
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
// process, and what its agent reports. It returns at the first sign of death, or with ctx's
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

// listen passes on the dying message. It freezes the partition at once: a kernel with kdump
// loaded goes on to boot its crash kernel, which must not get to the disks before the fence.
func (sd *side) listen(ctx context.Context) <-chan liveness.Verdict {
	dying := make(chan liveness.Verdict, 1)
	if sd.process.QMP == nil { // the process had ended when we took charge
		return dying
	}
	go func() {
		for e, err := range sd.process.QMP.Events(ctx) {
			if err != nil {
				return // the process has ended, which is seen elsewhere
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

// whileAlive runs do on a side that nobody watches yet. It breaks do off if the side's kernel
// reports its death: do would otherwise wait for an answer that never comes.
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

// watcher observes a side, and does not take what others do to the side for its death.
type watcher struct {
	side      *side
	began     time.Time
	silencer  *liveness.Silencer // of the beat
	pulses    []*pulse
	h         pair.Heartbeat
	held      func(why string)
	trouble   func(wire.TroubleNotice)
	fatal     bool               // a side in trouble is as good as dead
	panicked  func() (int, bool) // nil if that cannot be known
	hostReads func(disk string) bool
	room      func() bool // whether the images have room to grow

	panics bool // it was in panic() at the last look
	alone  bool // its agent is gone, and that was reported

	why   string    // what keeps it from running; empty if nothing does
	since time.Time // when why last changed
	tried time.Time // when QEMU was last asked to go on
	tries int       // how often in a row, while there was room
	asked time.Time // when lookForHold last asked
}

const (
	// answerWithin is how long QEMU may take to report its state for its partition's
	// silence to count. On a busy machine it takes tens of ms.
	answerWithin = 500 * time.Millisecond
	// qemuLimit is how long QEMU may fail to answer before it counts as hung itself.
	qemuLimit = 10 * time.Second
	// heldAfter is how long a partition may be silent, where that does not count, before we
	// look for what holds it, and how often we look.
	heldAfter = 2 * time.Second
	// contEvery is how often QEMU is asked to continue a partition that it stopped for lack
	// of room: there may be room again.
	contEvery = time.Second
	// maxTries is how often that is tried, while there is room, before we conclude that the
	// partition will never continue.
	maxTries = 10
)

const (
	noAnswer   = "QEMU does not answer"
	notRunning = "its threads are stopped, or wait for this machine"
	// After a failed flush, QEMU fails all further flushes of that image without trying them, since data
	// in the host's cache may be lost (block/file-posix.c, page_cache_inconsistent).
	noFlush = "QEMU has stopped it (io-error), and does so again though there is room: once a flush of an image has failed, QEMU fails all others"
)

// look makes one observation. What the process has done is looked up only while the beat
// stands still.
func (w *watcher) look(ctx context.Context) (liveness.Verdict, bool) {
	sd := w.side
	now := time.Now()
	sd.looked.Store(&now)
	if w.panicked != nil {
		cpu, yes := w.panicked()
		if yes && w.panics { // for a whole period, and without a dying message
			sd.process.Freeze()
			return liveness.Verdict{Cause: liveness.PanicState, At: time.Now(), Detail: fmt.Sprintf("CPU %d of partition %s is in panic()", cpu, sd.name)}, true
		}
		w.panics = yes
	}
	o := liveness.Observation{At: time.Now(), Counter: sd.counter(liveness.CounterOffset)}
	if o.Counter != sd.counted {
		sd.counted = o.Counter
		sd.beaten.Store(&o.At)
		if time.Since(w.tried) > contEvery { // otherwise it may run out of room again at once
			w.heldBy("")
			w.tries = 0
		}
		v, dead := w.silencer.Observe(o)
		sd.longest.Store(max(sd.longest.Load(), int64(w.silencer.Longest())))
		return v, dead
	}
	// An error means that the process is ending, which is seen elsewhere.
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

// lookForHold finds what keeps the partition from running while it is silent and that does
// not count: its threads are frozen, stopped, or wait for this machine.
func (w *watcher) lookForHold(ctx context.Context, now time.Time) {
	beaten := read(&w.side.beaten)
	still := now.Sub(beaten)
	if watched := now.Sub(w.began); watched < still { // nobody looked before that
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

// ask finds what other than its own kernel may keep a silent partition from running: it is
// frozen, or QEMU has stopped it, most likely for lack of room.
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
