package nfsd

import (
	"fmt"
	"strings"
	"time"
)

// stopwatch measures parts of a whole, for the console.
type stopwatch struct {
	last time.Time
	laps []string
}

func newStopwatch() *stopwatch { return &stopwatch{last: time.Now()} }

// lap ends a part.
func (w *stopwatch) lap(name string) {
	now := time.Now()
	w.laps = append(w.laps, fmt.Sprintf("%s %.1f ms", name, float64(now.Sub(w.last))/float64(time.Millisecond)))
	w.last = now
}

func (w *stopwatch) String() string { return strings.Join(w.laps, ", ") }
