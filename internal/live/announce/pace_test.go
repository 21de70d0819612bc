package announce

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestPace: the packets of a tenth of a second are sent at once, and after that never more
// than the rate allows, nor much less.
func TestPace(t *testing.T) {
	for _, tt := range []struct{ rate, n int }{{2000, 5000}, {1, 4}, {10, 25}, {1_000_000, 300_000}, {7, 20}} {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			var at []time.Duration
			if sent := (Pace{tt.rate}).Run(t.Context(), tt.n, func(i int) {
				if i != len(at) {
					t.Fatalf("sent %d after %d", i, len(at))
				}
				at = append(at, time.Since(start))
			}); sent != tt.n || len(at) != tt.n {
				t.Fatalf("rate %d: sent %d, %d of %d", tt.rate, sent, len(at), tt.n)
			}
			burst := max(1, tt.rate/10)
			for i, when := range at {
				first := time.Duration(max(0, i+1-burst)) * time.Second / time.Duration(tt.rate)
				last := first + max(tick, time.Second/time.Duration(tt.rate))
				if i < burst {
					last = 0
				}
				if when < first-time.Microsecond || when > last {
					t.Fatalf("rate %d: packet %d went at %v, want %v to %v", tt.rate, i, when, first, last)
				}
			}
		})
	}
}

func TestPaceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		calls := 0
		if sent := (Pace{100}).Run(ctx, 1000, func(int) { calls++ }); sent != calls || sent < 100 || sent > 110 {
			t.Errorf("in a second at 100 a second: sent %d, %d calls", sent, calls)
		}
		if sent := (Pace{100}).Run(ctx, 0, func(int) { t.Error("sent one of none") }); sent != 0 {
			t.Errorf("sent %d of none", sent)
		}
	})
}

func TestRepeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		var at []time.Duration
		Repeat(t.Context(), func() {
			at = append(at, time.Since(start))
			time.Sleep(10 * time.Millisecond) // this delay must not add up
		})
		if !slices.Equal(at, repeats) {
			t.Errorf("repeated at %v, want %v", at, repeats)
		}
		ctx, cancel := context.WithTimeout(t.Context(), repeats[0]+1)
		defer cancel()
		n := 0
		if Repeat(ctx, func() { n++ }); n != 1 {
			t.Errorf("repeated %d times until the end", n)
		}
	})
}
