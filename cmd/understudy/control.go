package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/events"
	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/metrics"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// controlSocket is the name of the supervisor's control socket in its run directory.
const controlSocket = "control.sock"

// socketOf returns the path of the control socket of a pair's supervisor.
func socketOf(pair string) string { return filepath.Join(dirs.Run(pair), controlSocket) }

// supervisedSince returns when the supervisor of a pair began to answer; zero if there is none.
func supervisedSince(pair string) time.Time {
	st, err := os.Stat(socketOf(pair))
	if err != nil {
		return time.Time{}
	}
	return st.ModTime()
}

// Verbs of the control socket.
const (
	verbStatus = "status" // the result is a status
	verbCrash  = "crash"  // the request is a crashRequest
	verbDown   = "down"   // the request is a downRequest
	verbSwitch = "switch" // the request is a switchRequest, the result a lastTakeover
	verbLeave  = "leave"  // no request, no result
)

// crashRequest kills the active kernel.
type crashRequest struct {
	Silent bool `json:"silent"` // without a dying message
	Force  bool `json:"force"`  // even if nobody would take over
}

// downRequest ends a pair.
type downRequest struct {
	Force   bool `json:"force"`   // even if the active side cannot stop in good order
	Discard bool `json:"discard"` // give up what is in memory only
}

// status is what a supervisor reports about its pair.
type status struct {
	Name       string        `json:"name"`
	State      string        `json:"state"` // protected, held, taking over, unprotected, failed
	Active     string        `json:"active"`
	Understudy string        `json:"understudy"` // empty if there is none
	Kernel     string        `json:"kernel"`     // release of the active kernel
	Accel      string        `json:"accel"`
	Since      time.Time     `json:"since"`
	Takeovers  int           `json:"takeovers"` // since the pair came up
	Takeover   *lastTakeover `json:"last_takeover,omitempty"`
	Pause      time.Duration `json:"longest_pause_ns"` // of the active side's beat, while the side lived
	Limit      time.Duration `json:"beat_limit_ns"`
	// When each side was last seen to beat, if it was seen to.
	Beat           time.Time `json:"last_beat,omitzero"`
	UnderstudyBeat time.Time `json:"understudy_last_beat,omitzero"`
	Unsaved        *uint64   `json:"unsaved_bytes,omitempty"`   // by the active kernel's own count; absent if not known
	Unread         string    `json:"unread,omitempty"`          // why a takeover would not bring over what is unsaved
	Held           string    `json:"held,omitempty"`            // why the active side stands still
	UnderstudyHeld string    `json:"understudy_held,omitempty"` // likewise
	Troubles       []string  `json:"troubles,omitempty"`        // what does not work on a side, although it runs
	Error          string    `json:"error,omitempty"`
	// Kept is the memory of sides that died before, with what could not be brought to the disks.
	Kept []supervisor.KeptMemory `json:"kept,omitempty"`
}

// lastTakeover is what is reported about a takeover afterwards.
type lastTakeover struct {
	At      time.Time `json:"at"`
	Verdict string    `json:"verdict,omitempty"` // empty for a switch
	takeover.Report
	Steps []takeover.Step `json:"steps"`
}

// control answers on the control socket.
type control struct {
	s        *supervisor.Supervisor
	listener net.Listener
	end      func()
	told     *outlets // nil if nobody is told

	mu       sync.Mutex
	status   status
	stopping bool       // its end was asked for, and its services are being stopped
	died     func()     // breaks that off, because the active side has died; nil if nothing is being stopped
	stopped  bool       // nothing is left to be stopped
	downed   bool       // its end was asked for by down, and is granted
	leaving  bool       // the guests are to go on
	halting  sync.Mutex // held while the active side's services are being stopped
	order    *order     // the switch that was asked for; nil if none was
	wake     func()     // makes guard look at order
}

// serve begins to answer on the control socket in the run directory.
func (c *control) serve(ctx context.Context, dir string) error {
	path := filepath.Join(dir, controlSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) { // left by a supervisor that has ended
		return fmt.Errorf("open control socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("open control socket: %w", err)
	}
	c.listener = l
	c.set(c.role(), nil)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = wire.New(conn, wire.FromCommand, c.answer).Serve(ctx) }() // it ends with the connection
		}
	}()
	return nil
}

func (c *control) close() { c.listener.Close() }

// answer answers a request. ctx ends when the connection does.
func (c *control) answer(ctx context.Context, verb string, body json.RawMessage) (any, error) {
	switch verb {
	case verbStatus:
		c.mu.Lock()
		defer c.mu.Unlock()
		st := c.status
		v := c.s.Vitals()
		st.Pause, st.Limit, st.Unread = v.Pause, c.s.Pair.Heartbeat.Limit, v.Unread
		if st.Beat, st.UnderstudyBeat = v.Beat, v.UnderstudyBeat; v.Known {
			st.Unsaved = &v.Unsaved
		}
		st.Kept = c.s.Kept()
		return st, nil
	case verbCrash:
		var r crashRequest
		if err := json.Unmarshal(body, &r); err != nil {
			return nil, err
		}
		if _, understudy := c.s.Sides(); understudy.Name == "" && !r.Force {
			return nil, errors.New("the pair is unprotected, and its service would stand still until an understudy has booted (--force crashes it all the same)")
		}
		return nil, c.s.Crash(r.Silent)
	case verbSwitch:
		var r switchRequest
		if err := json.Unmarshal(body, &r); err != nil {
			return nil, err
		}
		return c.ordered(ctx, r)
	case verbLeave:
		if err := c.leave(); err != nil {
			return nil, err
		}
		context.AfterFunc(ctx, c.end) // as below
		return nil, nil
	case verbDown:
		var r downRequest
		if err := json.Unmarshal(body, &r); err != nil {
			return nil, err
		}
		if err := c.down(r); err != nil {
			return nil, err
		}
		c.mu.Lock()
		c.downed = true
		c.mu.Unlock()
		// The end is deferred until the caller has the answer and has hung up, since it closes everything that is open.
		context.AfterFunc(ctx, c.end)
		return nil, nil
	}
	return nil, fmt.Errorf("the supervisor does not know %q: is it older than this command?", verb)
}

// role returns the state of a pair that is up.
func (c *control) role() string {
	if _, understudy := c.s.Sides(); understudy.Name == "" {
		return "unprotected"
	}
	return "protected"
}

func (c *control) set(state string, t *lastTakeover) {
	active, understudy := c.s.Sides()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status = status{
		Name: c.s.Pair.Name, State: state, Active: active.Name, Understudy: understudy.Name,
		Kernel: active.Release, Accel: string(active.Accel), Since: time.Now(),
		Takeovers: c.status.Takeovers, Takeover: c.status.Takeover, Troubles: c.status.Troubles,
	}
	if t != nil {
		c.status.Takeover, c.status.Troubles = t, nil
	}
}

// guard watches the pair, takes over, and gets the pair protected again, until ctx ends.
func (c *control) guard(ctx context.Context, out io.Writer) error {
	for {
		p := c.protect(ctx, out)
		death, err := c.s.Watch(p.ctx)
		if ctx.Err() != nil {
			p.stop()
			if c.isLeaving() {
				fmt.Fprintln(out, "the guests go on without a supervisor")
				return nil
			}
			return c.goDown(out)
		}
		if err != nil { // there is now an understudy to watch, too, or a switch was asked for
			p.stop()
			if err = c.woken(ctx, out); err == nil {
				continue
			}
			var died *supervisor.Died
			if !errors.As(err, &died) {
				return c.failed(ctx, out, err)
			}
			death = supervisor.Death{Verdict: died.Verdict}
		}
		if death.Understudy {
			p.stop()
			c.lost(out, death.Verdict)
			continue
		}
		if err := c.takeOver(ctx, out, p, death.Verdict); err != nil {
			return c.failed(ctx, out, err)
		}
	}
}

// leave lets the supervisor end, and the guests go on, if nothing is being done to the guests.
func (c *control) leave() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.status.State; s != "protected" && s != "unprotected" || c.order != nil {
		return fmt.Errorf("the pair is %s: leave it when it is protected", s)
	}
	if c.stopping || c.stopped {
		return errGoesDown
	}
	c.leaving = true
	return nil
}

func (c *control) isLeaving() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaving
}

// lost notes that the understudy died.
func (c *control) lost(out io.Writer, v liveness.Verdict) {
	err := errors.Join(fmt.Errorf("the understudy died: %s", v), c.s.LoseUnderstudy())
	c.set("unprotected", nil)
	c.note(err)
	fmt.Fprintln(out, err)
	c.tell(events.Unprotected, string(v.Cause), err.Error(), nil)
}

// takeOver takes over from a dead active side, once there is an understudy.
func (c *control) takeOver(ctx context.Context, out io.Writer, p *protection, v liveness.Verdict) error {
	fmt.Fprintln(out, v)
	c.set("taking over", nil)
	c.letGo()
	c.tell(events.TakingOver, string(v.Cause), v.Detail, nil)
	c.answerOrder(nil, fmt.Errorf("the active side died: %s", v))
	if err := p.await(ctx, c.s.Freeze); err != nil {
		return c.s.GiveUp(err)
	}
	// A signal does not break off a takeover, which ends by itself, well or badly.
	report, err := c.s.TakeOver(context.WithoutCancel(ctx), v)
	if report == nil {
		return err
	}
	c.tookOver(out, v, report, err)
	return nil
}

// tookOver reports what a takeover did.
func (c *control) tookOver(out io.Writer, v liveness.Verdict, report *takeover.Report, err error) {
	t := &lastTakeover{At: v.At, Verdict: v.String(), Report: *report, Steps: report.Timeline.Steps()}
	c.mu.Lock()
	c.status.Takeovers++
	c.mu.Unlock()
	c.changed(out, t, string(v.Cause), err)
}

// changed reports that the other side serves now, since the side that served has died of a
// cause, or since a switch was asked for.
func (c *control) changed(out io.Writer, t *lastTakeover, cause string, err error) {
	t.Fit()
	c.set("unprotected", t)
	c.mu.Lock()
	c.stopped = false // what was stopped is now the other side
	c.mu.Unlock()
	if err != nil {
		c.note(err)
		fmt.Fprintln(out, err)
		c.tell(events.Error, cause, err.Error(), nil)
	}
	_ = t.write(out) // that nobody can read it is not an error
	kind := events.TookOver
	if cause == metrics.Switch {
		kind = events.Switched
	}
	c.count(cause, t)
	c.tell(kind, cause, t.summary(), t)
	for _, u := range t.Unready {
		c.trouble(out, wire.TroubleNotice{What: u.String()})
	}
	c.tell(events.Unprotected, "", "the other side boots as the new understudy", nil)
}

// held notes why a side stands still, or that it continues.
func (c *control) held(out io.Writer, understudy bool, why string) {
	side, field := "the active side", &c.status.Held
	if understudy {
		side, field = "the understudy", &c.status.UnderstudyHeld
	}
	c.mu.Lock()
	*field = why
	c.mu.Unlock()
	kind, text := events.Held, fmt.Sprintf("%s stands still: %s", side, why)
	if why == "" {
		kind, text = events.Resumed, side+" goes on"
	}
	c.tell(kind, "", text, nil)
	fmt.Fprintln(out, text)
}

// maxTroubles is how many troubles a status has at most.
const maxTroubles = 16

// trouble notes what an agent reports not to work, or to work again.
func (c *control) trouble(out io.Writer, t wire.TroubleNotice) {
	if t.Ends != "" {
		c.mu.Lock()
		c.status.Troubles = slices.DeleteFunc(slices.Clone(c.status.Troubles), func(s string) bool { return s == t.Ends })
		c.mu.Unlock()
		c.tell(events.Resumed, "", t.What, nil)
		fmt.Fprintln(out, t.What)
		return
	}
	what := t.What
	c.mu.Lock()
	n := len(c.status.Troubles)
	news := !slices.Contains(c.status.Troubles, what)
	if news && n < maxTroubles {
		c.status.Troubles = append(c.status.Troubles[:n:n], what)
	}
	c.mu.Unlock()
	if news {
		c.tell(events.Trouble, "", what, nil)
	}
	fmt.Fprintf(out, "trouble: %s\n", what)
}

// note puts an error into the status.
func (c *control) note(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Error = err.Error()
}

// errGoesDown means that nothing else can be done to a pair.
var errGoesDown = errors.New("the pair goes down already: wait for that; it first writes what is unsaved, and stops its services")

// errTakesOver means that a side is not stopped any more.
var errTakesOver = errors.New("the active side has died while it was to stop, and a takeover is under way: ask again when understudy status says something else")

// letGo ends the wait for a dead side to stop.
func (c *control) letGo() {
	c.mu.Lock()
	died := c.died
	c.mu.Unlock()
	if died != nil {
		died()
	}
}

// down stops the active side's services, unless something else is being done to the pair: if two
// callers stopped and started the side at the same time, one would see what the other has half done.
func (c *control) down(r downRequest) error {
	ctx, died := context.WithCancelCause(context.Background())
	defer died(nil)
	c.mu.Lock()
	var err error
	var o *order
	switch {
	case c.stopping:
		err = errGoesDown
	case c.leaving:
		err = errors.New("its supervisor is ending, and leaves the guests running: run this again")
	case c.status.State == "taking over":
		err = errors.New("a takeover is under way, and it ends by itself: ask again when understudy status says something else")
	case c.status.State == "switching", c.order != nil && c.status.State == "protected":
		err = errors.New("a switch is under way, and it ends by itself: ask again when understudy status says something else")
	default:
		c.stopping, c.died = true, func() { died(errTakesOver) }
		o, c.order = c.order, nil
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if o != nil { // the order waits for an understudy with another kernel
		o.done <- errGoesDown
	}
	defer func() {
		c.mu.Lock()
		c.stopping, c.died = false, nil
		c.mu.Unlock()
	}()
	return c.stop(r, func() error {
		err := c.s.Stop(ctx)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	})
}

// stopAlone is stop for when nobody watches the active side any more.
func (c *control) stopAlone(r downRequest) error {
	return c.stop(r, func() error { return c.s.StopAlone(context.Background()) })
}

// stop ends the work of the active side before the pair goes down. If it succeeds, nothing that is
// wanted is in memory only, or the memory is kept. A signal waits for a down that is under way.
func (c *control) stop(r downRequest, work func() error) error {
	c.halting.Lock()
	defer c.halting.Unlock()
	c.mu.Lock()
	failed, stopped := c.status.State == "failed", c.stopped
	c.mu.Unlock()
	var err error
	if !failed && !stopped {
		err = work()
	}
	switch {
	case err == nil && !failed, errors.Is(err, errTakesOver):
	case r.Discard && (failed || r.Force):
		err = c.s.Discard()
	case failed:
		err = nil // the memory is kept
	case r.Force:
		err = c.s.Abandon(context.Background(), fmt.Errorf("it was forced down: %w", err))
	default:
		return hint.New("the pair stays up, since its active side cannot stop in good order", err,
			"End what keeps it, and run this again; or: understudy down --force, which keeps its memory.")
	}
	if err == nil {
		c.mu.Lock()
		c.stopped = true
		c.mu.Unlock()
	}
	return err
}

// goDown ends a pair in good order, so that nothing is left in memory only. If that is not
// possible, the memory is kept, since the sender of the signal ends us anyway.
func (c *control) goDown(out io.Writer) error {
	fmt.Fprintln(out, "going down")
	return c.stopAlone(downRequest{Force: true})
}

// failed keeps a pair whose takeover failed, above all the dead kernel's memory, until the
// operator asks for down.
func (c *control) failed(ctx context.Context, out io.Writer, err error) error {
	fmt.Fprintf(out, "takeover failed: %v\n", err)
	c.mu.Lock()
	c.status.State, c.status.Since = "failed", time.Now()
	c.mu.Unlock()
	c.note(err)
	c.tell(events.Failed, "", err.Error(), nil)
	<-ctx.Done()
	return err
}

// errNoPair means that there is no supervisor to ask.
var errNoPair = errors.New("no pair is up (start one with: understudy up -f pair.yaml)")

// findPair returns the name of a pair: name itself, or that of the only pair that is up.
func findPair(name string) (string, error) {
	if name != "" {
		return name, nil
	}
	dirs, err := filepath.Glob(filepath.Join(dirs.Run("*"), controlSocket))
	if err != nil {
		return "", err
	}
	switch len(dirs) {
	case 0:
		return "", errNoPair
	case 1:
		return filepath.Base(filepath.Dir(dirs[0]))[len("understudy-"):], nil
	}
	return "", fmt.Errorf("%d pairs are up: say which", len(dirs))
}

// notUp means that a pair has no supervisor.
type notUp struct{ name string }

func (n *notUp) Error() string { return fmt.Sprintf("pair %s is not up", n.name) }

// ask calls the supervisor of a pair.
func ask(ctx context.Context, name, verb string, in, out any) error {
	name, err := findPair(name)
	if err != nil {
		return err
	}
	path := socketOf(name)
	conn, err := net.Dial("unix", path)
	if nobody(err) {
		return &notUp{name}
	}
	if err != nil {
		return fmt.Errorf("reach the supervisor of %s: %w", name, err)
	}
	c := wire.New(conn, wire.FromControl, nil)
	defer c.Close()
	go func() { _ = c.Serve(ctx) }() // when it ends, the call fails
	if err := c.Call(ctx, verb, in, out); err != nil {
		again, gone := net.Dial("unix", path)
		if nobody(gone) { // the supervisor has ended since: a listening socket is closed before those that it accepted
			return &notUp{name}
		}
		if gone == nil {
			_ = again.Close()
		}
		return err
	}
	return nil
}

// nobody reports whether an error of dialing a control socket means that it has no supervisor.
func nobody(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
}
