package events

import (
	"sync"
	"time"
)

// maxWaiting is how many events may wait to be handled: more than there are in a bad hour
// of a pair.
const maxWaiting = 256

// queue handles events on its own goroutine, one after the other. Adding an event never
// blocks.
type queue struct {
	mu      sync.Mutex
	closed  bool
	dropped int64 // since an event was last accepted
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

// add accepts an event, unless too many are waiting.
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

// close waits until all accepted events are handled, for at most limit. It reports whether
// they are.
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
