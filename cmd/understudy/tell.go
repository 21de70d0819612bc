package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/events"
	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/metrics"
	"understudy.dev/understudy/internal/live/pair"
	"understudy.dev/understudy/internal/live/sdnotify"
)

// outlets are where it is told what happens to a pair. None of them is waited for, or ends a
// pair.
type outlets struct {
	out      io.Writer
	log      *events.Log // nil: it cannot be written
	hooks    *events.Runner
	metrics  *metrics.Metrics
	server   *http.Server // nil: nobody is served
	notifier *sdnotify.Notifier
}

// openOutlets opens those of a pair. What cannot be opened is told, and done without.
func openOutlets(p *pair.Pair, out io.Writer, n *sdnotify.Notifier, look func() metrics.Snapshot) *outlets {
	o := &outlets{out: out, notifier: n}
	failed := func(err error) { fmt.Fprintln(out, err) }
	var err error
	if o.log, err = events.Open(dirs.State(p.Name), failed); err != nil {
		failed(err)
	}
	o.hooks = events.NewRunner(p.Hooks, func(err error) {
		failed(err)
		o.add(events.Event{At: time.Now(), Kind: events.Error, Pair: p.Name, Detail: err.Error()}) // to the log alone: a hook must not run for its own failure
	})
	var causes []string
	for _, c := range liveness.Causes {
		causes = append(causes, string(c))
	}
	o.metrics = metrics.New(p.Name, version(), causes, look)
	if p.Metrics.IsValid() {
		if o.server, err = o.metrics.Serve(p.Metrics, failed); err != nil {
			failed(err)
		}
	}
	return o
}

// add has an event written.
func (o *outlets) add(e events.Event) {
	if o.log != nil {
		o.log.Add(e)
	}
}

// tell passes an event on to all.
func (o *outlets) tell(e events.Event) {
	if o == nil {
		return
	}
	o.add(e)
	o.hooks.Add(e)
	status := e.State
	if e.Active != "" {
		status += ", " + e.Active + " serves"
	}
	if err := o.notifier.Tell(sdnotify.Status(status)); err != nil {
		fmt.Fprintln(o.out, err)
	}
}

// close waits for what is still to be written and run; with leaving not for long: whoever watches the
// guests next may not begin before this process has ended.
func (o *outlets) close(leaving bool) error {
	var errs []error
	if o.server != nil {
		errs = append(errs, o.server.Close())
	}
	if leaving {
		errs = append(errs, o.hooks.Leave())
	} else {
		errs = append(errs, o.hooks.Close())
	}
	if o.log != nil {
		errs = append(errs, o.log.Close())
	}
	return errors.Join(errs...)
}

// tell says that something happened to the pair.
func (c *control) tell(kind events.Kind, cause, detail string, t *lastTakeover) {
	c.mu.Lock()
	st := c.status
	c.mu.Unlock()
	e := events.Event{
		At: time.Now(), Kind: kind, Pair: st.Name, State: st.State, Active: st.Active, Understudy: st.Understudy,
		Cause: cause, Detail: detail,
	}
	if t != nil {
		e.Takeover, _ = json.Marshal(t) // plain values
	}
	c.told.tell(e)
}

// snapshot is how the pair is, for metrics.
func (c *control) snapshot() metrics.Snapshot {
	c.mu.Lock()
	st, told := c.status, c.told
	c.mu.Unlock()
	s := metrics.Snapshot{State: st.State, Since: st.Since, Held: st.Held != "", UnderstudyHeld: st.UnderstudyHeld != "", Troubles: len(st.Troubles)}
	if told != nil {
		s.HookFailures = told.hooks.Failures()
	}
	if c.s != nil {
		v := c.s.Vitals()
		s.Beat, s.Understudy, s.Unsaved, s.Known = v.Beat, v.UnderstudyBeat, v.Unsaved, v.Known
		s.Pause, s.Limit, s.Unread = v.Pause, c.s.Pair.Heartbeat.Limit, v.Unread != ""
	}
	return s
}

// count has metrics count a takeover, or a switch.
func (c *control) count(cause string, t *lastTakeover) {
	if c.told == nil {
		return
	}
	m := metrics.Takeover{At: t.At, Cause: cause, Files: t.Files, Bytes: t.Bytes, Refused: t.Refusals()}
	for _, s := range t.Steps {
		if strings.HasPrefix(s.Name, " ") { // a part of one
			continue
		}
		took := time.Duration((s.End - s.Start) * float64(time.Millisecond))
		m.Steps = append(m.Steps, metrics.Step{Name: s.Name, Took: took})
	}
	m.Took = t.outage()
	c.told.metrics.TookOver(m)
}

// watched says that the supervisor does its work: it looks at the active side, or is doing
// something else that has its own limits.
func (c *control) watched(now time.Time) bool {
	c.mu.Lock()
	state := c.status.State
	c.mu.Unlock()
	if state != "protected" && state != "unprotected" {
		return true
	}
	return now.Sub(c.s.Vitals().Looked) < lookLimit
}

// lookLimit is how long the watcher may not look: many times as long as any question that it
// asks may take.
const lookLimit = 20 * time.Second

// feed keeps a service manager's watchdog quiet for as long as the supervisor does its work, and
// ends it with ctx: what is done after that has limits of its own, and takes minutes.
func (c *control) feed(ctx context.Context) {
	n := c.told.notifier
	tell := func(state string) {
		if err := n.Tell(state); err != nil {
			fmt.Fprintln(c.told.out, err)
		}
	}
	var tick <-chan time.Time
	if every := n.Every(); every != 0 {
		t := time.NewTicker(every)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case <-ctx.Done():
			tell(sdnotify.Stopping)
			return
		case now := <-tick:
			if c.watched(now) {
				tell(sdnotify.Watchdog)
			}
		}
	}
}

// timed has each line begin with the time.
type timed struct {
	to  io.Writer
	now func() time.Time

	mu   sync.Mutex
	line []byte // without its end yet
}

// withTimes gives the lines of a log their times, unless the journal does.
func withTimes(out io.Writer) io.Writer {
	if f, ok := out.(*os.File); ok && isJournal(f) {
		return out
	}
	return &timed{to: out, now: time.Now}
}

// isJournal says whether a file is the stream that systemd has connected to its journal
// (systemd.exec(5), JOURNAL_STREAM: device and inode).
func isJournal(f *os.File) bool {
	var st unix.Stat_t
	dev, ino, ok := strings.Cut(os.Getenv("JOURNAL_STREAM"), ":")
	return ok && unix.Fstat(int(f.Fd()), &st) == nil && dev == strconv.FormatUint(st.Dev, 10) && ino == strconv.FormatUint(st.Ino, 10)
}

// maxHalfLine bounds what waits for the end of its line.
const maxHalfLine = 64 << 10

// Write implements io.Writer.
func (t *timed) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.line = append(t.line, b...)
	end := bytes.LastIndexByte(t.line, '\n') + 1
	if len(t.line)-end > maxHalfLine {
		end = len(t.line)
	}
	if end == 0 {
		return len(b), nil
	}
	at := t.now().Format("2006-01-02T15:04:05.000Z07:00 ")
	var out []byte
	for line := range bytes.Lines(t.line[:end]) {
		out = append(append(out, at...), line...)
	}
	t.line = append([]byte(nil), t.line[end:]...)
	if _, err := t.to.Write(out); err != nil {
		return 0, err
	}
	return len(b), nil
}
