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
	"sync"
	"time"

	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// controlSocket is where a supervisor is spoken to, in its run directory.
const controlSocket = "control.sock"

// Verbs of the control socket.
const (
	verbStatus = "status" // to status
	verbCrash  = "crash"  // wire.CrashRequest
	verbDown   = "down"
)

// status is what a supervisor says of its pair.
type status struct {
	Name       string        `json:"name"`
	State      string        `json:"state"` // protected, taking over, unprotected, down
	Active     string        `json:"active"`
	Understudy string        `json:"understudy"` // empty: none
	Kernel     string        `json:"kernel"`     // release of the active kernel
	Accel      string        `json:"accel"`
	Since      time.Time     `json:"since"`
	Takeover   *lastTakeover `json:"last_takeover,omitempty"`
	Error      string        `json:"error,omitempty"`
}

// lastTakeover is what there is to say of a takeover afterwards.
type lastTakeover struct {
	At      time.Time `json:"at"`
	Verdict string    `json:"verdict"`
	takeover.Report
	Steps []takeover.Step `json:"steps"`
}

// control answers on the control socket.
type control struct {
	s        *supervisor.Supervisor
	listener net.Listener
	end      func()

	mu     sync.Mutex
	status status
}

func serveControl(ctx context.Context, s *supervisor.Supervisor, dir string, end func()) (*control, error) {
	l, err := net.Listen("unix", filepath.Join(dir, controlSocket))
	if err != nil {
		return nil, fmt.Errorf("open control socket: %w", err)
	}
	c := &control{s: s, listener: l, end: end}
	c.set("protected", nil)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go wire.New(conn, c.answer).Serve(ctx)
		}
	}()
	return c, nil
}

func (c *control) close() { c.listener.Close() }

// answer answers a request; its context ends with the connection.
func (c *control) answer(ctx context.Context, verb string, body json.RawMessage) (any, error) {
	switch verb {
	case verbStatus:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.status, nil
	case verbCrash:
		var r wire.CrashRequest
		if err := json.Unmarshal(body, &r); err != nil {
			return nil, err
		}
		return nil, c.s.Crash(r.Silent)
	case verbDown:
		// Once whoever asks has the answer and has hung up: the end closes all that is open.
		context.AfterFunc(ctx, c.end)
		return nil, nil
	}
	return nil, fmt.Errorf("the supervisor does not know %q: is it older than this command?", verb)
}

func (c *control) set(state string, t *lastTakeover) {
	active, understudy := c.s.Sides()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status = status{
		Name: c.s.Pair.Name, State: state, Active: active.Name, Understudy: understudy.Name,
		Kernel: active.Release, Accel: string(active.Accel), Since: time.Now(), Takeover: c.status.Takeover,
	}
	if t != nil {
		c.status.Takeover = t
	}
}

// guard watches and takes over until the end. A pair that has taken over once
// is unprotected, and its next death ends it.
func (c *control) guard(ctx context.Context, out io.Writer) error {
	for {
		verdict, err := c.s.Watch(ctx)
		if err != nil {
			return c.goDown(out)
		}
		fmt.Fprintf(out, "%s\n", verdict)
		c.set("taking over", nil)
		// A takeover is not broken off by a signal: it ends, well or badly.
		report, err := c.s.TakeOver(context.WithoutCancel(ctx), verdict)
		if report == nil {
			return c.failed(ctx, out, err)
		}
		t := &lastTakeover{At: verdict.At, Verdict: verdict.String(), Report: *report, Steps: report.Timeline.Steps()}
		c.set("unprotected", t)
		if err != nil {
			c.note(err)
			fmt.Fprintln(out, err)
		}
		fmt.Fprintf(out, "took over: %d files, %d bytes recovered, %d refused\n", report.Files, report.Bytes, len(report.Refused))
		if len(c.s.Pair.NICs) > 0 {
			fmt.Fprintf(out, "told: %s\n", &report.Notified)
		}
		if err := takeover.WriteSteps(out, t.Steps, 50); err != nil {
			return err
		}
	}
}

// note has the status say an error.
func (c *control) note(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.Error = err.Error()
}

// goDown ends a pair in good order: nothing is in memory only any more.
func (c *control) goDown(out io.Writer) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	fmt.Fprintln(out, "going down")
	if err := c.s.Stop(ctx); err != nil {
		return fmt.Errorf("stop the active side in good order: %w", err)
	}
	return nil
}

// failed keeps a pair whose takeover did not come through as it is, the dead
// memory above all, until the operator says down.
func (c *control) failed(ctx context.Context, out io.Writer, err error) error {
	fmt.Fprintf(out, "takeover failed: %v\nThe memory and logs of both sides stay in %s until `understudy down`.\n", err, dirs.Run(c.s.Pair.Name))
	c.mu.Lock()
	c.status.State = "failed"
	c.mu.Unlock()
	c.note(err)
	<-ctx.Done()
	return err
}

// findPair is the running pair of that name, or the only one there is.
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
		return "", errors.New("no pair is up (start one with: understudy up -f pair.yaml)")
	case 1:
		return filepath.Base(filepath.Dir(dirs[0]))[len("understudy-"):], nil
	}
	return "", fmt.Errorf("%d pairs are up: say which", len(dirs))
}

// ask calls the supervisor of a pair.
func ask(ctx context.Context, name, verb string, in, out any) error {
	name, err := findPair(name)
	if err != nil {
		return err
	}
	conn, err := net.Dial("unix", filepath.Join(dirs.Run(name), controlSocket))
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("pair %s is not up", name)
		}
		return fmt.Errorf("reach the supervisor of %s: %w", name, err)
	}
	c := wire.New(conn, nil)
	defer c.Close()
	go c.Serve(ctx)
	return c.Call(ctx, verb, in, out)
}
