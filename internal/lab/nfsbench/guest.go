package nfsbench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"

	"understudy.dev/understudy/internal/live/agent"
	"understudy.dev/understudy/internal/live/wire"
)

// Verbs of the agent in the client's guest.
const (
	VerbStart = "nfsbench.start" // Work: begin a stream
	VerbCount = "nfsbench.count" // returns how many operations of each stream succeeded
	VerbStop  = "nfsbench.stop"  // returns an Outcome: ends all streams
	VerbClock = "nfsbench.clock" // returns the guest's clock
	VerbSetUp = "nfsbench.setup" // a list of directories: make them
)

// Work is a stream of operations on a mount. Append, Names or Lines says which.
type Work struct {
	Name   string    `json:"name"`
	Append *Appended `json:"append,omitempty"`
	Names  *Names    `json:"names,omitempty"`
	Lines  *Lines    `json:"lines,omitempty"`
	// Buffered makes reads go through the client's cache.
	Buffered bool `json:"buffered,omitempty"`
}

// Outcome is the result of all streams of a guest: what must be on the server.
type Outcome struct {
	Streams []Stream `json:"streams"`
	Works   []*Work  `json:"works"`
}

// do works until the context ends.
func (w *Work) do(ctx context.Context, m *Moments) {
	switch {
	case w.Append != nil:
		appendRecords(ctx, m, w.Append, openSynced(w.Append.Path, !w.Buffered))
	case w.Names != nil:
		w.Names.work(ctx, m)
	case w.Lines != nil:
		w.Lines.work(ctx, m)
	}
}

// running are streams under way.
type running struct {
	mu      sync.Mutex
	cancel  []func()
	done    sync.WaitGroup
	moments []*Moments
	works   []*Work
}

// start begins a stream.
func (r *running) start(w *Work) {
	r.run(w, func(ctx context.Context, m *Moments, w *Work) { w.do(ctx, m) })
}

func (r *running) run(w *Work, do func(context.Context, *Moments, *Work)) {
	ctx, cancel := context.WithCancel(context.Background())
	m := newMoments(w.Name)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cancel = append(r.cancel, cancel)
	r.moments = append(r.moments, m)
	r.works = append(r.works, w)
	r.done.Go(func() { do(ctx, m, w) })
}

// count returns how many operations each stream has done.
func (r *running) count() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := make(map[string]int)
	for _, m := range r.moments {
		n[m.result.Name] = m.done()
	}
	return n
}

// stop ends all streams, each after its operation. If the context ends first, it fails: a
// stream still waits for its server.
func (r *running) stop(ctx context.Context) (*Outcome, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, cancel := range r.cancel {
		cancel()
	}
	ended := make(chan struct{})
	go func() {
		r.done.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the last operations: %w", context.Cause(ctx))
	}
	o := &Outcome{Works: r.works}
	for _, m := range r.moments {
		o.Streams = append(o.Streams, m.end())
	}
	r.cancel, r.moments, r.works = nil, nil, nil
	return o, nil
}

// Verbs are what a client's agent answers.
func Verbs() map[string]agent.Verb {
	r := &running{}
	return map[string]agent.Verb{
		VerbStart: func(_ context.Context, _ *wire.Conn, body json.RawMessage) (any, error) {
			w := new(Work)
			if err := json.Unmarshal(body, w); err != nil {
				return nil, err
			}
			r.start(w)
			return nil, nil
		},
		VerbCount: func(context.Context, *wire.Conn, json.RawMessage) (any, error) { return r.count(), nil },
		VerbStop:  func(ctx context.Context, _ *wire.Conn, _ json.RawMessage) (any, error) { return r.stop(ctx) },
		VerbClock: func(context.Context, *wire.Conn, json.RawMessage) (any, error) { return clock(), nil },
		VerbSetUp: func(_ context.Context, _ *wire.Conn, body json.RawMessage) (any, error) {
			var dirs []string
			if err := json.Unmarshal(body, &dirs); err != nil {
				return nil, err
			}
			var errs []error
			for _, d := range dirs {
				errs = append(errs, os.MkdirAll(d, 0o755))
			}
			return nil, errors.Join(errs...)
		},
	}
}
