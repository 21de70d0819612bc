package bare

import (
	"testing"
	"time"

	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/metal"
)

// TestPulses: a counter that stands still past its limit is a death, with its own cause. One
// that has not begun to count is none.
func TestPulses(t *testing.T) {
	c := &metal.Config{Limit: time.Second, CPU: 4 * time.Second, Others: []uint32{2}}
	for _, test := range []struct {
		name    string
		stuck   int // index of the pulse that stops; -1: none
		never   bool
		want    liveness.Cause
		within  time.Duration
		nothing bool
	}{
		{name: "all count", stuck: -1, nothing: true},
		{name: "the beat stops", stuck: 0, want: liveness.Silence, within: 1100 * time.Millisecond},
		{name: "a CPU stops", stuck: 2, want: liveness.StuckCPU, within: 4100 * time.Millisecond},
		{name: "nothing has begun", stuck: -1, never: true, nothing: true},
	} {
		all := pulses(c)
		if len(all) != 3 {
			t.Fatalf("%d pulses", len(all))
		}
		start := time.Unix(0, 0)
		var got liveness.Verdict
		var dead bool
		var took time.Duration
		for i := 0; i < 2000 && !dead; i++ {
			took = time.Duration(i) * period
			for n, p := range all {
				counter := uint64(i + 1)
				if n == test.stuck {
					counter = 1
				}
				if test.never {
					counter = 0
				}
				if v, d := p.observe(start.Add(took), counter); d {
					got, dead = v, true
				}
			}
		}
		if dead == test.nothing || got.Cause != test.want || dead && took > test.within {
			t.Errorf("%s: %v, %v after %v", test.name, dead, got, took)
		}
	}
	if all := pulses(&metal.Config{}); len(all) != 0 {
		t.Errorf("%d pulses without limits", len(all))
	}
}

// TestPatience: a kernel that was silent for half of its limit, or longer than that, and went
// on may be silent for longer, but not for ever.
func TestPatience(t *testing.T) {
	for _, test := range []struct {
		before time.Duration // a silence that ends
		within [2]time.Duration
	}{
		{0, [2]time.Duration{time.Second, 1100 * time.Millisecond}},
		{200 * time.Millisecond, [2]time.Duration{time.Second, 1100 * time.Millisecond}},
		{500 * time.Millisecond, [2]time.Duration{1900 * time.Millisecond, 2200 * time.Millisecond}},
		{990 * time.Millisecond, [2]time.Duration{3900 * time.Millisecond, 4200 * time.Millisecond}},
	} {
		p := pulses(&metal.Config{Limit: time.Second})[0]
		at, counter := time.Unix(0, 0), uint64(1)
		look := func() (liveness.Verdict, bool) {
			at = at.Add(period)
			return p.observe(at, counter)
		}
		for range 2 {
			for end := at.Add(test.before); at.Before(end); {
				if v, dead := look(); dead {
					t.Fatalf("a silence of %v is a death: %v", test.before, v)
				}
			}
			counter++
			look()
		}
		since := at
		var v liveness.Verdict
		for dead := false; !dead && at.Sub(since) < 10*time.Second; {
			v, dead = look()
		}
		if took := at.Sub(since); took < test.within[0] || took > test.within[1] {
			t.Errorf("after a silence of %v another is a death after %v: %v", test.before, took, v)
		}
	}
}
