package extract

import (
	"errors"
	"sync/atomic"
	"testing"
)

// TestSpread checks that everything is done once, and that an error ends it.
func TestSpread(t *testing.T) {
	for _, workers := range []int{1, 2, 7} {
		for _, n := range []int{0, 1, 5, 1000} {
			done := make([]atomic.Int32, n)
			if err := spread(workers, n, func(i int) error { done[i].Add(1); return nil }); err != nil {
				t.Error(err)
			}
			for i := range done {
				if got := done[i].Load(); got != 1 {
					t.Errorf("%d workers did piece %d of %d %d times", workers, i, n, got)
				}
			}
		}
		broken := errors.New("broken")
		var after atomic.Int32
		err := spread(workers, 100_000, func(i int) error {
			if i == 50 {
				return broken
			}
			after.Add(1)
			return nil
		})
		if !errors.Is(err, broken) || after.Load() == 99_999 {
			t.Errorf("%d workers: %v, and %d pieces more", workers, err, after.Load())
		}
	}
}
