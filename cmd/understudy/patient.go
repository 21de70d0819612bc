package main

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"time"
)

// patient passes on what is written to it, in order, without making the writer wait: a terminal that was
// stopped (Ctrl-S), a pager, or a journal that hangs must not keep a pair from a takeover. Output for which
// there is no room is dropped, and the dropped lines are counted.
type patient struct {
	to io.Writer

	mu      sync.Mutex
	cond    sync.Cond
	waiting bytes.Buffer
	dropped int // lines that were dropped after those in waiting
	closed  bool
	done    chan struct{}
}

// maxPatience is how many bytes may wait: more than a pair prints in a bad week.
const maxPatience = 1 << 20

func newPatient(to io.Writer) *patient {
	p := &patient{to: to, done: make(chan struct{})}
	p.cond.L = &p.mu
	go p.pass()
	return p
}

// Write implements io.Writer. It never waits, and never fails.
func (p *patient) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dropped > 0 || p.waiting.Len()+len(b) > maxPatience {
		p.dropped += bytes.Count(b, []byte("\n"))
	} else {
		p.waiting.Write(b)
	}
	p.cond.Signal()
	return len(b), nil
}

// pass passes on what was written, until all of it is passed on and the writer is closed.
func (p *patient) pass() {
	defer close(p.done)
	for {
		p.mu.Lock()
		for p.waiting.Len() == 0 && p.dropped == 0 && !p.closed {
			p.cond.Wait()
		}
		if p.dropped > 0 {
			fmt.Fprintf(&p.waiting, "%d lines are not here: nobody took them\n", p.dropped)
			p.dropped = 0
		}
		b := bytes.Clone(p.waiting.Bytes())
		p.waiting.Reset()
		p.mu.Unlock()
		if len(b) == 0 {
			return
		}
		_, _ = p.to.Write(b) // an error could not be reported anywhere
	}
}

// close waits until everything is passed on, but not longer than limit.
func (p *patient) close(limit time.Duration) {
	p.mu.Lock()
	p.closed = true
	p.cond.Signal()
	p.mu.Unlock()
	select {
	case <-p.done:
	case <-time.After(limit):
	}
}
