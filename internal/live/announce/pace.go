package announce

import (
	"context"
	"time"
)

// Pace is how fast to send: the packets of a tenth of a second at once, then evenly.
type Pace struct {
	Rate int // packets a second, at least 1
}

// burst is how many packets go at once.
func (p Pace) burst() int { return max(1, p.Rate/10) }

// due is how many packets may have been sent when that time has passed since the first.
func (p Pace) due(since time.Duration) int {
	seconds, rest := since/time.Second, since%time.Second
	return p.burst() + int(seconds)*p.Rate + int(rest)*p.Rate/int(time.Second)
}

// tick is the shortest sleep: sending several packets at a time costs less than a
// timer for each.
const tick = 2 * time.Millisecond

// Run calls send for 0 to n-1, at the pace, and returns how many calls it made: n,
// unless ctx ends earlier.
func (p Pace) Run(ctx context.Context, n int, send func(i int)) int {
	start := time.Now()
	for i := 0; i < n; {
		for due := min(n, p.due(time.Since(start))); i < due; i++ {
			send(i)
		}
		if i == n {
			break
		}
		select {
		case <-ctx.Done():
			return i
		case <-time.After(max(tick, time.Second/time.Duration(p.Rate))):
		}
	}
	return n
}

// repeats are the times, from the first announcement, at which it is made again: a
// switch may have dropped one, or not have been ready for it.
var repeats = []time.Duration{100 * time.Millisecond, 300 * time.Millisecond, time.Second}

// Repeat calls send once for each of repeats, at that time from now.
func Repeat(ctx context.Context, send func()) {
	start := time.Now()
	for _, at := range repeats {
		select {
		case <-ctx.Done():
			return
		case <-time.After(at - time.Since(start)):
			send()
		}
	}
}
