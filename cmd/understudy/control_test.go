package main

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/live/sdnotify"
)

// TestDownAnswersFirst checks that a pair goes down when the caller has hung up, and not
// before the caller has its answer.
func TestDownAnswersFirst(t *testing.T) {
	ended := make(chan struct{})
	c := &control{stopped: true, end: func() { close(ended) }}
	connection, hangUp := context.WithCancel(t.Context())
	defer hangUp()
	if _, err := c.answer(connection, verbDown, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
		t.Error("it goes down while the other side waits for its answer")
	case <-time.After(100 * time.Millisecond):
	}
	hangUp()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("it does not go down")
	}
}

// TestAskEnds checks that a supervisor that ends while it is asked counts as not there.
func TestAskEnds(t *testing.T) {
	t.Setenv("UNDERSTUDY_RUN", t.TempDir())
	path := socketOf("test")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, end := range map[string]func(net.Listener){
		"before it takes the call": func(net.Listener) { time.Sleep(100 * time.Millisecond) },
		"in the call": func(l net.Listener) {
			if conn, err := l.Accept(); err == nil {
				_ = l.Close() // as when a process is killed, whose descriptors are closed in their order
				_ = conn.Close()
			}
		},
	} {
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		go func() {
			end(l)
			_ = l.Close()
		}()
		var gone *notUp
		if err := ask(t.Context(), "test", verbStatus, nil, nil); !errors.As(err, &gone) {
			t.Errorf("%s: %v", name, err)
		}
		_ = os.Remove(path)
	}
}

// TestOneAtATime checks that a pair that is being stopped, taken over or switched is not
// stopped or left by anything else.
func TestOneAtATime(t *testing.T) {
	tests := []struct {
		name string
		busy *control
		verb string
		want string
	}{
		{"down while it goes down", &control{stopping: true}, verbDown, "goes down already"},
		{"leave while it goes down", &control{stopping: true}, verbLeave, "goes down already"},
		{"leave when it has stopped", &control{stopped: true}, verbLeave, "goes down already"},
		{"switch while it goes down", &control{stopping: true}, verbSwitch, "goes down already"},
		{"switch when it has stopped", &control{stopped: true}, verbSwitch, "goes down already"},
		{"down when its supervisor leaves", &control{leaving: true}, verbDown, "leaves the guests running"},
		{"down in a takeover", &control{status: status{State: "taking over"}}, verbDown, "a takeover is under way"},
		{"down in a switch", &control{status: status{State: "switching"}}, verbDown, "a switch is under way"},
		{"down before a switch", &control{order: &order{}}, verbDown, "a switch is under way"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.busy.status.State == "" {
				tt.busy.status.State = "protected"
			}
			tt.busy.end = func() { t.Error("it ends") }
			_, err := tt.busy.answer(t.Context(), tt.verb, []byte("{}"))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want: %s", err, tt.want)
			}
		})
	}
}

// TestStopIsOne checks that a signal waits for a down that is under way, and that a side that dies
// during it is taken over from, whatever else was asked for.
func TestStopIsOne(t *testing.T) {
	c := &control{}
	began, let := make(chan struct{}), make(chan struct{})
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		first <- c.stop(downRequest{Force: true, Discard: true}, func() error {
			close(began)
			<-let
			return errTakesOver
		})
	}()
	<-began
	go func() { second <- c.stop(downRequest{}, func() error { return nil }) }()
	select {
	case <-second:
		t.Error("the signal does not wait")
	case <-time.After(100 * time.Millisecond):
	}
	close(let)
	if err := <-first; !errors.Is(err, errTakesOver) {
		t.Errorf("down: %v", err)
	}
	if err := <-second; err != nil || !c.stopped {
		t.Errorf("signal: %v, stopped: %v", err, c.stopped)
	}
}

// TestLetGo checks that nobody waits for the end of a side that was to stop and has died.
func TestLetGo(t *testing.T) {
	c := &control{}
	c.letGo()
	let := false
	c.died = func() { let = true }
	if c.letGo(); !let {
		t.Error("it is waited for")
	}
}

// TestEndIsTold checks that a service manager is told at once that the supervisor ends, whether
// or not it has a watchdog: the watchdog would kill the supervisor in the middle of its work.
func TestEndIsTold(t *testing.T) {
	for _, limit := range []string{"", "60000000"} {
		name := filepath.Join(t.TempDir(), "n")
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		t.Setenv("NOTIFY_SOCKET", name)
		t.Setenv("WATCHDOG_USEC", limit)
		n, err := sdnotify.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		c := &control{told: &outlets{notifier: n, out: t.Output()}}
		ctx, end := context.WithCancel(t.Context())
		go c.feed(ctx)
		end()
		b := make([]byte, 256)
		if err := l.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		size, err := l.Read(b)
		if got := string(b[:size]); err != nil || got != sdnotify.Stopping {
			t.Errorf("limit %q: told %q, %v", limit, got, err)
		}
	}
}

// TestDownIsNoFailure checks that up ends with the error of a failed takeover, or of what is
// left, unless down asked for the end: a service manager restarts what fails.
func TestDownIsNoFailure(t *testing.T) {
	failure := errors.New("takeover failed")
	c := &control{status: status{State: "failed"}, end: func() {}}
	if err := c.verdict(t.Output(), failure); !errors.Is(err, failure) {
		t.Errorf("without down: %v", err)
	}
	if _, err := c.answer(t.Context(), verbDown, []byte("{}")); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := c.verdict(&out, failure); err != nil || !strings.Contains(out.String(), "takeover failed") {
		t.Errorf("after down: %v, said %q", err, out.String())
	}
	busy := &control{stopping: true}
	if _, err := busy.answer(t.Context(), verbDown, []byte("{}")); err == nil {
		t.Fatal("a second down is granted")
	}
	if err := busy.verdict(t.Output(), failure); !errors.Is(err, failure) {
		t.Errorf("after a down that was refused: %v", err)
	}
}
