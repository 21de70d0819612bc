package nfsd

import (
	"fmt"
	"strings"
	"time"
)

// watch measures parts of a whole, for the console.
type watch struct {
	last time.Time
	laps []string
}

func newWatch() *watch { return &watch{last: time.Now()} }

// lap ends a part.
func (w *watch) lap(name string) {
	now := time.Now()
	w.laps = append(w.laps, fmt.Sprintf("%s %.1f ms", name, float64(now.Sub(w.last))/float64(time.Millisecond)))
	w.last = now
}

func (w *watch) String() string { return strings.Join(w.laps, ", ") }
