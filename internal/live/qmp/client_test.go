package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const hello = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}` + "\r\n"

// request is a command as a server sees it.
type request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        uint64          `json:"id"`
}

// fakeServer greets, accepts the capabilities and then calls handle for each
// command, which answers as it likes.
func fakeServer(conn net.Conn, handle func(w io.Writer, r request)) {
	io.WriteString(conn, hello)
	dec := json.NewDecoder(conn)
	for {
		var r request
		if err := dec.Decode(&r); err != nil {
			return
		}
		if r.Execute == "qmp_capabilities" {
			fmt.Fprintf(conn, `{"return": {}, "id": %d}`+"\r\n", r.ID)
			continue
		}
		handle(conn, r)
	}
}

// connect returns a client of a fake server.
func connect(t *testing.T, handle func(w io.Writer, r request)) (*Client, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe()
	go fakeServer(theirs, handle)
	c, err := New(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); theirs.Close() })
	return c, theirs
}

// within runs f in a bubble of virtual time, with a limit of a minute of it.
func within(t *testing.T, f func(t *testing.T, ctx context.Context)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		f(t, ctx)
	})
}

func TestRepliesMatchByID(t *testing.T) {
	within(t, func(t *testing.T, ctx context.Context) {
		// The server answers in pairs, the second first.
		var first *request
		c, _ := connect(t, func(w io.Writer, r request) {
			if first == nil {
				first = &r
				return
			}
			fmt.Fprintf(w, `{"return": %q, "id": %d}`+"\n", r.Execute, r.ID)
			fmt.Fprintf(w, `{"return": %q, "id": %d}`+"\n", first.Execute, first.ID)
			first = nil
		})
		var wg sync.WaitGroup
		for i := range 20 {
			wg.Go(func() {
				verb, got := fmt.Sprintf("verb-%d", i), ""
				if err := c.Execute(ctx, verb, nil, &got); err != nil || got != verb {
					t.Errorf("%s: got the answer of %q, %v", verb, got, err)
				}
			})
		}
		wg.Wait()
	})
}

func TestServerError(t *testing.T) {
	within(t, func(t *testing.T, ctx context.Context) {
		c, _ := connect(t, func(w io.Writer, r request) {
			fmt.Fprintf(w, `{"error": {"class": "DeviceNotFound", "desc": "no X"}, "id": %d}`+"\n", r.ID)
		})
		err := c.QOMSet(ctx, "/machine/peripheral/X", "drive", "node")
		e, ok := errors.AsType[*Error](err)
		if !ok || *e != (Error{"qom-set", "DeviceNotFound", "no X"}) {
			t.Errorf("got %#v", err)
		}
		if err.Error() != "qmp qom-set: no X (DeviceNotFound)" {
			t.Errorf("message %q", err)
		}
	})
}

func TestTimeoutIsNoDisconnect(t *testing.T) {
	within(t, func(t *testing.T, ctx context.Context) {
		c, _ := connect(t, func(w io.Writer, r request) {
			if r.Execute == "stop" {
				time.Sleep(time.Second)
			}
			fmt.Fprintf(w, `{"return": %q, "id": %d}`+"\n", r.Execute, r.ID)
		})
		short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		if err := c.Execute(short, "stop", nil, nil); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errGone) {
			t.Errorf("slow command: %v, want a timeout", err)
		}
		// The server is still asleep and does not read: this command waits for its
		// turn to write, and gives up without having sent anything.
		if err := c.Cont(short); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("expired context: %v", err)
		}
		blocked, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		if err := c.Cont(blocked); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, errGone) {
			t.Errorf("server that does not read: %v, want a timeout", err)
		}
		var got string
		if err := c.Execute(ctx, "query", nil, &got); err != nil || got != "query" {
			t.Errorf("after timeouts: %q, %v; want the answer to this command", got, err)
		}
		if c.Err() != nil {
			t.Errorf("connection ended: %v", c.Err())
		}
	})
}

func TestHalfSentCommandEndsConnection(t *testing.T) {
	within(t, func(t *testing.T, ctx context.Context) {
		ours, theirs := net.Pipe()
		go func() {
			io.WriteString(theirs, hello)
			var r request
			json.NewDecoder(theirs).Decode(&r)
			fmt.Fprintf(theirs, `{"return": {}, "id": %d}`+"\n", r.ID)
			io.ReadFull(theirs, make([]byte, 10)) // and no more
		}()
		c, err := New(ctx, ours)
		if err != nil {
			t.Fatal(err)
		}
		defer theirs.Close()
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if err := c.Cont(short); !errors.Is(err, errGone) {
			t.Errorf("got %v, want that the connection is gone", err)
		}
	})
}

func TestDisconnect(t *testing.T) {
	within(t, func(t *testing.T, ctx context.Context) {
		c, theirs := connect(t, func(w io.Writer, r request) {})
		done := make(chan error)
		go func() { done <- c.Cont(ctx) }()
		synctest.Wait()
		theirs.Close()
		if err := <-done; !errors.Is(err, errGone) || !errors.Is(err, io.EOF) {
			t.Errorf("waiting command: %v, want gone by EOF", err)
		}
		if err := c.Cont(ctx); !errors.Is(err, errGone) {
			t.Errorf("next command: %v, want gone", err)
		}
		if err := c.Quit(ctx); err != nil {
			t.Errorf("quit of what is gone: %v", err)
		}
	})
}

func TestOutOfPlaceMessagesEndConnection(t *testing.T) {
	for _, line := range []string{hello, "junk\n", `{"error": {"class": "GenericError", "desc": "JSON parse error"}}` + "\n"} {
		within(t, func(t *testing.T, ctx context.Context) {
			c, _ := connect(t, func(w io.Writer, r request) { io.WriteString(w, line) })
			if err := c.Cont(ctx); !errors.Is(err, errGone) {
				t.Errorf("%q: %v, want gone", line, err)
			}
		})
	}
}

func TestLateAnswerToNobody(t *testing.T) {
	within(t, func(t *testing.T, ctx context.Context) {
		c, _ := connect(t, func(w io.Writer, r request) {
			fmt.Fprintf(w, `{"return": 1, "id": 999}`+"\n"+`{"return": 2, "id": %d}`+"\n"+`{"return": 3, "id": %d}`+"\n", r.ID, r.ID)
		})
		for range 2 {
			got := 0
			if err := c.Execute(ctx, "x", nil, &got); err != nil || got != 2 {
				t.Errorf("got %d, %v; want 2", got, err)
			}
		}
	})
}

func TestEventsReachEveryReader(t *testing.T) {
	within(t, func(t *testing.T, ctx context.Context) {
		c, theirs := connect(t, nil)
		// Events before any reader, and nobody reads while they come.
		for i := range 100 {
			fmt.Fprintf(theirs, `{"event": "E%d", "timestamp": {"seconds": 1, "microseconds": 0}}`+"\n", i)
		}
		read := func() (names []string, end error) {
			for e, err := range c.Events(ctx) {
				if err != nil {
					return names, err
				}
				names = append(names, e.Name)
			}
			return names, nil
		}
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				names, err := read()
				if len(names) != 101 || names[0] != "E0" || names[100] != "GUEST_PANICKED" || !errors.Is(err, errGone) {
					t.Errorf("%d events %.3q, end %v; want 101 and then gone", len(names), names, err)
				}
			})
		}
		synctest.Wait()
		io.WriteString(theirs, `{"event": "GUEST_PANICKED", "data": {"action": "run"}, "timestamp": {"seconds": 1, "microseconds": 0}}`+"\n")
		theirs.Close()
		wg.Wait()
	})
}

func TestEventsEndWithContext(t *testing.T) {
	within(t, func(t *testing.T, ctx context.Context) {
		c, _ := connect(t, nil)
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		for e, err := range c.Events(short) {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v, %v; want a timeout", e, err)
			}
		}
		if c.Err() != nil {
			t.Error(c.Err())
		}
	})
}

func TestSlowReaderIsTold(t *testing.T) {
	within(t, func(t *testing.T, ctx context.Context) {
		c, theirs := connect(t, nil)
		send := func(n int) {
			_, err := io.WriteString(theirs, strings.Repeat(`{"event": "E"}`+"\n", n))
			if err != nil {
				t.Error(err)
			}
		}
		send(1)
		seen := 0
		for _, err := range c.Events(ctx) {
			if err != nil {
				if !errors.Is(err, errEventsLost) || seen != 1 {
					t.Errorf("after %d events: %v", seen, err)
				}
				return
			}
			seen++
			send(maxEvents) // while this reader is busy
			synctest.Wait()
		}
	})
}

// TestNewReaderOfManyEvents: a reader that begins late gets the events that are kept, and those that come later.
func TestNewReaderOfManyEvents(t *testing.T) {
	within(t, func(t *testing.T, ctx context.Context) {
		c, theirs := connect(t, nil)
		for i := range 3 * maxEvents {
			fmt.Fprintf(theirs, `{"event": "E%d"}`+"\n", i)
		}
		synctest.Wait()
		var names []string
		for e, err := range c.Events(ctx) {
			if err != nil {
				t.Fatalf("after %d events: %v", len(names), err)
			}
			if names = append(names, e.Name); e.Name == "GUEST_PANICKED" {
				break
			}
			if len(names) == maxEvents/2 {
				go io.WriteString(theirs, `{"event": "GUEST_PANICKED"}`+"\n")
			}
		}
		if last := fmt.Sprintf("E%d", 3*maxEvents-1); len(names) <= maxEvents/2 || names[len(names)-2] != last {
			t.Errorf("%d events, the last %q", len(names), names[max(0, len(names)-2):])
		}
	})
}

func TestDialWaitsForSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "qmp")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("no socket: %v, want a timeout", err)
	}
	listening := make(chan net.Listener, 1)
	go func() {
		time.Sleep(20 * time.Millisecond)
		l, err := net.Listen("unix", path)
		if err != nil {
			t.Error(err)
			return
		}
		listening <- l
		conn, err := l.Accept()
		if err != nil {
			return
		}
		fakeServer(conn, func(io.Writer, request) {})
	}()
	c, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defer (<-listening).Close()
	// The listener accepts no second client: no greeting comes.
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, path); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "another client") {
		t.Errorf("second client: %v", err)
	}
}
