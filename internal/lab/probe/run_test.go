package probe

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// fakeHost is a server at the other end of a pipe, on the clock of a synctest bubble.
type fakeHost struct {
	start    time.Time
	dead     [2]time.Duration // no answer to a dial from the first to the second, after start
	refusing bool             // while dead: refuse rather than be silent
	work     time.Duration    // from the request to the answer
	body     func() string
}

func (h *fakeHost) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	if at := time.Since(h.start); at >= h.dead[0] && at < h.dead[1] {
		if h.refusing {
			return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	client, server := net.Pipe()
	go func() {
		defer server.Close()
		if _, err := http.ReadRequest(bufio.NewReader(server)); err != nil {
			return
		}
		time.Sleep(h.work)
		fmt.Fprintf(server, "HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n%s", h.body())
	}()
	return client, nil
}

// ask runs the probe against the host for some time and returns its answers.
func (h *fakeHost) ask(t *testing.T, span time.Duration) []Answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), span)
	defer cancel()
	h.start = time.Now()
	log := NewLog(0)
	if err := Run(ctx, Spec{Address: "host:80", Path: "/f", Dial: h.dial}, log); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second) // let the host's side of the last tries end
	answers, forgotten := log.Answers()
	if forgotten != 0 {
		t.Errorf("%d answers forgotten", forgotten)
	}
	return answers
}

func TestRunMeasuresOutage(t *testing.T) {
	for _, refusing := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			h := &fakeHost{
				dead: [2]time.Duration{time.Second, 1500 * time.Millisecond}, refusing: refusing,
				work: 5 * time.Millisecond, body: func() string { return "content" },
			}
			answers := h.ask(t, 2990*time.Millisecond)
			good := Want(sha256.Sum256([]byte("content")))
			gap, err := Outage(answers, good, h.start.Add(time.Second))
			if err != nil {
				t.Fatal(err)
			}
			// The last try before began at 980 ms, the first after at 1500 ms, and each took 5 ms.
			if gap.Duration != 520*time.Millisecond || gap.Last.End.Sub(h.start) != 985*time.Millisecond {
				t.Errorf("gap %v from %v", gap.Duration, gap.Last.End.Sub(h.start))
			}
			class := Timeout
			if refusing {
				class = Refused
			}
			c := Tally(answers, good)
			if c.Good != 125 || c.Errors[class] != 25 || c.Total != 150 {
				t.Errorf("%+v", c)
			}
			for _, a := range answers {
				if a.End.Sub(a.Start) > DefaultTimeout {
					t.Errorf("a try took %v", a.End.Sub(a.Start))
				}
			}
		})
	}
}

func TestRunSlowServerKeepsBeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &fakeHost{work: 39 * time.Millisecond, body: func() string { return "" }}
		answers := h.ask(t, 990*time.Millisecond)
		if c := Tally(answers, Want(sha256.Sum256(nil))); c.Good != 48 || c.Total != 48 {
			t.Errorf("%+v", c)
		}
	})
}

func TestRunHoldsToInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		open, most := 0, 0
		count := func(n int) {
			mu.Lock()
			defer mu.Unlock()
			open += n
			most = max(most, open)
		}
		dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
			count(1)
			<-ctx.Done()
			count(-1)
			return nil, ctx.Err()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := Run(ctx, Spec{Path: "/", Timeout: 200 * time.Millisecond, InFlight: 3, Dial: dial}, NewLog(0))
		if err != nil || most != 3 || open != 0 {
			t.Errorf("%v; at most %d open, in the end %d", err, most, open)
		}
	})
}

func TestRunRefusesSpec(t *testing.T) {
	for _, s := range []Spec{{}, {Path: "x"}, {Path: "/", Interval: -1}, {Path: "/", Timeout: -1}} {
		if err := Run(t.Context(), s, NewLog(0)); err == nil {
			t.Errorf("%+v: no error", s)
		}
		if _, a := Fetch(t.Context(), s); a.Class != Other || a.Err == nil {
			t.Errorf("fetch %+v: %+v", s, a)
		}
	}
}

func TestAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := NewLog(2)
		is := func(n int64) func(Answer) bool { return func(a Answer) bool { return a.Size == n } }
		go func() {
			for n := range int64(5) {
				time.Sleep(time.Second)
				log.add(Answer{Size: n})
			}
		}()
		start := time.Now()
		if a, err := log.Await(t.Context(), is(3)); err != nil || a.Size != 3 || time.Since(start) != 4*time.Second {
			t.Errorf("%+v, %v after %v", a, err, time.Since(start))
		}
		if a, err := log.Await(t.Context(), is(3)); err != nil || a.Size != 3 {
			t.Errorf("kept: %+v, %v", a, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := log.Await(ctx, is(9)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("never good: %v", err)
		}
	})
}

func TestLogForgetsTheOldest(t *testing.T) {
	log := NewLog(3)
	for n := range int64(10) {
		log.add(Answer{Size: n})
		kept, forgotten := log.Answers()
		if want := min(n+1, 3); int64(len(kept)) != want || int64(forgotten) != n+1-want {
			t.Fatalf("after %d: %d kept, %d forgotten", n+1, len(kept), forgotten)
		}
		for i, a := range kept {
			if a.Size != int64(forgotten+i) {
				t.Errorf("after %d: answer %d is %d", n+1, i, a.Size)
			}
		}
	}
}
