package extract

import (
	"errors"
	"sync"
	"sync/atomic"
)

// spread does n pieces of work with several workers until one fails. A worker takes a
// stretch of consecutive pieces at a time, so that workers are mostly in different
// directories. Stretches get shorter towards the end.
func spread(workers, n int, work func(i int) error) error {
	var mu sync.Mutex
	next := 0
	take := func() (from, to int) {
		mu.Lock()
		defer mu.Unlock()
		from = next
		if workers == 1 {
			next = n
		} else {
			next = min(n, from+1+(n-from)/(8*workers))
		}
		return from, next
	}
	var failed atomic.Bool
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for from, to := take(); from < to; from, to = take() {
				for i := from; i < to; i++ {
					if failed.Load() {
						return
					}
					if errs[w] = work(i); errs[w] != nil {
						failed.Store(true)
					}
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
