package takeover

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
)

// Step is one part of a takeover, in milliseconds since the timeline's zero.
type Step struct {
	Name  string  `json:"name"`
	Start float64 `json:"start_ms"`
	End   float64 `json:"end_ms"`
}

// Timeline measures the steps of a takeover on one clock. Steps may overlap.
type Timeline struct {
	zero time.Time

	mu    sync.Mutex
	steps []Step
}

// NewTimeline returns a timeline that counts from zero.
func NewTimeline(zero time.Time) *Timeline { return &Timeline{zero: zero} }

// Zero is the time that the steps count from.
func (t *Timeline) Zero() time.Time { return t.zero }

// Add records a step.
func (t *Timeline) Add(name string, start, end time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.steps = append(t.steps, Step{Name: name, Start: t.ms(start), End: t.ms(end)})
}

// Measure runs one step and records it, failed or not.
func (t *Timeline) Measure(name string, f func() error) error {
	start := time.Now()
	err := f()
	t.Add(name, start, time.Now())
	return err
}

func (t *Timeline) ms(at time.Time) float64 {
	return float64(at.Sub(t.zero).Microseconds()) / 1000
}

// Steps returns the steps so far, in the order of their start; a step that contains
// others comes before them.
func (t *Timeline) Steps() []Step {
	t.mu.Lock()
	defer t.mu.Unlock()
	steps := append([]Step(nil), t.steps...)
	slices.SortStableFunc(steps, func(a, b Step) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(b.End, a.End))
	})
	return steps
}

// WriteSteps draws steps as bars over a common axis, width characters wide.
func WriteSteps(w io.Writer, steps []Step, width int) error {
	var end float64
	name := 0
	for _, s := range steps {
		end = max(end, s.End)
		name = max(name, len(s.Name))
	}
	for _, s := range steps {
		from, to := bar(s, end, width)
		_, err := fmt.Fprintf(w, "%-*s %8.1f %8.1f ms  |%s%s%s|\n", name, s.Name, s.Start, s.End,
			strings.Repeat(" ", from), strings.Repeat("█", to-from), strings.Repeat(" ", width-to))
		if err != nil {
			return err
		}
	}
	return nil
}

// bar is where a step's bar begins and ends: at least one character, within
// the width.
func bar(s Step, end float64, width int) (from, to int) {
	if end <= 0 {
		return 0, min(1, width)
	}
	scale := float64(width) / end
	from = min(max(int(s.Start*scale), 0), width-1)
	to = min(max(int(s.End*scale), from+1), width)
	return from, to
}
