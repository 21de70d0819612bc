package probe

import (
	"context"
	"io"
	"sync"
	"time"
)

// Run asks every interval until the context ends, and records each answer in log; then it waits for the tries that
// are still open and drops them. A beat at which Spec.InFlight tries are open is left out. Run returns an error only
// for a Spec that makes no sense.
func Run(ctx context.Context, spec Spec, log *Log) error {
	s, err := spec.fill()
	if err != nil {
		return err
	}
	// The tries must not see the context's own deadline: one that it cut short would look like a dead server.
	tries, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	var open sync.WaitGroup
	defer open.Wait()
	defer giveUp()
	slots := make(chan struct{}, s.InFlight)
	beat := time.NewTicker(s.Interval)
	defer beat.Stop()
	for {
		select {
		case slots <- struct{}{}:
			open.Go(func() {
				defer func() { <-slots }()
				a := s.try(tries, io.Discard)
				if tries.Err() == nil {
					log.add(a)
				}
			})
		default:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
		}
	}
}

// DefaultKeep is how many answers a Log keeps: 21 minutes of them at the default interval, in about 10 MiB.
const DefaultKeep = 1 << 16

// Log keeps the latest answers, in the order in which they ended. It is safe for concurrent use.
type Log struct {
	mu     sync.Mutex
	keep   int
	ring   []Answer      // the answer numbered i stands at i % keep
	next   int           // number of the next answer
	change chan struct{} // closed by the next answer
}

// NewLog makes a Log of keep answers; zero means DefaultKeep. Older ones are forgotten.
func NewLog(keep int) *Log {
	if keep <= 0 {
		keep = DefaultKeep
	}
	return &Log{keep: keep, change: make(chan struct{})}
}

func (l *Log) add(a Answer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ring) < l.keep {
		l.ring = append(l.ring, a)
	} else {
		l.ring[l.next%l.keep] = a
	}
	l.next++
	close(l.change)
	l.change = make(chan struct{})
}

// Answers returns the answers kept, oldest first, and how many were forgotten before them.
func (l *Log) Answers() (kept []Answer, forgotten int) {
	kept, next, _ := l.since(0)
	return kept, next - len(kept)
}

// since returns the answers kept from number from on, the number after them, and a channel that the next one closes.
func (l *Log) since(from int) (answers []Answer, next int, change <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := max(from, l.next-len(l.ring)); i < l.next; i++ {
		answers = append(answers, l.ring[i%l.keep])
	}
	return answers, l.next, l.change
}

// Await returns the first answer, among those kept and those to come, that is good; it fails with the context's error
// when that ends first. To wait for an answer after some moment, let good look at Answer.Start.
func (l *Log) Await(ctx context.Context, good func(Answer) bool) (Answer, error) {
	from := 0
	for {
		answers, next, change := l.since(from)
		for _, a := range answers {
			if good(a) {
				return a, nil
			}
		}
		from = next
		select {
		case <-ctx.Done():
			return Answer{}, ctx.Err()
		case <-change:
		}
	}
}
