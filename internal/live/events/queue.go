package events

import (
	"sync"
	"time"
)

// maxWaiting is how many events may wait to be handled: more than a pair has in a bad
// hour.
const maxWaiting = 256

// queue has a goroutine of its own handle events, one after the other. Whoever adds one
// never waits.
type queue struct {
	mu      sync.Mutex
	closed  bool
	dropped int64 // since one was last taken in
	waiting chan Event
	done    chan struct{}
}

func newQueue(handle func(Event)) *queue {
	q := &queue{waiting: make(chan Event, maxWaiting), done: make(chan struct{})}
	go func() {
		defer close(q.done)
		for e := range q.waiting {
			handle(e)
		}
	}()
	return q
}

// add takes an event in, unless too many wait.
func (q *queue) add(e Event) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return
	}
	e.Dropped = q.dropped
	select {
	case q.waiting <- e:
		q.dropped = 0
	default:
		q.dropped++
	}
}

// close waits until all that was taken in is handled, for at most a time; it says whether
// it is.
func (q *queue) close(limit time.Duration) bool {
	q.mu.Lock()
	if !q.closed {
		q.closed = true
		close(q.waiting)
	}
	q.mu.Unlock()
	select {
	case <-q.done:
		return true
	case <-time.After(limit):
		return false
	}
}
