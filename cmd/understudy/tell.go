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

// outlets are where events of a pair are reported. The pair does not wait for any of them,
// and none of them can end it.
type outlets struct {
	out      io.Writer
	log      *events.Log // nil if it cannot be written
	hooks    *events.Runner
	metrics  *metrics.Metrics
	server   *http.Server // nil if metrics are not served
	notifier *sdnotify.Notifier
}

// openOutlets opens the outlets of a pair. An outlet that cannot be opened is reported, and left out.
func openOutlets(p *pair.Pair, out io.Writer, n *sdnotify.Notifier, look func() metrics.Snapshot) *outlets {
	o := &outlets{out: out, notifier: n}
	failed := func(err error) { fmt.Fprintln(out, err) }
	var err error
	if o.log, err = events.Open(dirs.State(p.Name), failed); err != nil {
		failed(err)
	}
	o.hooks = events.NewRunner(p.Hooks, func(err error) {
		failed(err)
		o.add(events.Event{At: time.Now(), Kind: events.Error, Pair: p.Name, Detail: err.Error()}) // to the log only: a hook must not run for its own failure
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

// add writes an event to the log.
func (o *outlets) add(e events.Event) {
	if o.log != nil {
		o.log.Add(e)
	}
}

// tell passes an event on to all outlets.
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

// close waits until everything is written and run; with leaving, not for long: the next supervisor of
// the guests cannot begin before this process has ended.
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

// tell reports that something happened to the pair.
func (c *control) tell(kind events.Kind, cause, detail string, t *lastTakeover) {
	c.mu.Lock()
	st := c.status
	c.mu.Unlock()
	e := events.Event{
		At: time.Now(), Kind: kind, Pair: st.Name, State: st.State, Active: st.Active, Understudy: st.Understudy,
		Cause: cause, Detail: detail,
	}
	if t != nil {
		e.Takeover, _ = json.Marshal(t) // it has plain values only
	}
	c.told.tell(e)
}

// snapshot returns the state of the pair, for metrics.
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

// count counts a takeover, or a switch, in the metrics.
func (c *control) count(cause string, t *lastTakeover) {
	if c.told == nil {
		return
	}
	m := metrics.Takeover{At: t.At, Cause: cause, Files: t.Files, Bytes: t.Bytes, Refused: t.Refusals()}
	for _, s := range t.Steps {
		if strings.HasPrefix(s.Name, " ") { // a part of a step
			continue
		}
		took := time.Duration((s.End - s.Start) * float64(time.Millisecond))
		m.Steps = append(m.Steps, metrics.Step{Name: s.Name, Took: took})
	}
	m.Took = t.outage()
	c.told.metrics.TookOver(m)
}

// watched reports whether the supervisor does its work: it looks at the active side, or
// does something else that has its own limits.
func (c *control) watched(now time.Time) bool {
	c.mu.Lock()
	state := c.status.State
	c.mu.Unlock()
	if state != "protected" && state != "unprotected" {
		return true
	}
	return now.Sub(c.s.Vitals().Looked) < lookLimit
}

// lookLimit is how long the watcher may not look at the active side: many times as long as
// any of its questions may take.
const lookLimit = 20 * time.Second

// feed keeps a service manager's watchdog quiet as long as the supervisor does its work. When
// ctx ends, it ends that, too: what is done afterwards has its own limits, and takes minutes.
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

// timed begins each line with the time.
type timed struct {
	to  io.Writer
	now func() time.Time

	mu   sync.Mutex
	line []byte // a line without its end yet
}

// withTimes puts the time before the lines of a log, unless the journal does.
func withTimes(out io.Writer) io.Writer {
	if f, ok := out.(*os.File); ok && isJournal(f) {
		return out
	}
	return &timed{to: out, now: time.Now}
}

// isJournal reports whether a file is the stream that systemd has connected to its journal
// (systemd.exec(5), JOURNAL_STREAM: device and inode).
func isJournal(f *os.File) bool {
	var st unix.Stat_t
	dev, ino, ok := strings.Cut(os.Getenv("JOURNAL_STREAM"), ":")
	return ok && unix.Fstat(int(f.Fd()), &st) == nil && dev == strconv.FormatUint(st.Dev, 10) && ino == strconv.FormatUint(st.Ino, 10)
}

// maxHalfLine bounds how many bytes wait for the end of their line.
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
