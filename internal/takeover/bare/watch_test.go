package bare

import (
	"slices"
	"testing"
	"time"

	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/metal"
)

// TestPulses: a CPU's counter that stands still past its limit is a death, and so is the beat's if all CPUs' stand
// still too, each with its own cause. One that has not begun to count is none.
func TestPulses(t *testing.T) {
	c := &metal.Config{Limit: time.Second, CPU: 4 * time.Second, Others: []uint32{2}}
	for _, test := range []struct {
		name    string
		stuck   []int // what stops: 0 is the beat, 1 and 2 are CPUs
		never   bool
		want    liveness.Cause
		within  time.Duration
		nothing bool
	}{
		{name: "all count", nothing: true},
		{name: "all stop", stuck: []int{0, 1, 2}, want: liveness.Silence, within: 1100 * time.Millisecond},
		{name: "the beat stops", stuck: []int{0}, nothing: true},
		{name: "all CPUs stop but the beat", stuck: []int{1, 2}, want: liveness.StuckCPU, within: 4100 * time.Millisecond},
		{name: "a CPU stops", stuck: []int{2}, want: liveness.StuckCPU, within: 4100 * time.Millisecond},
		{name: "a CPU stops, and the beat on it", stuck: []int{0, 2}, want: liveness.StuckCPU, within: 4100 * time.Millisecond},
		{name: "nothing has begun", never: true, nothing: true},
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
			counters := map[int]uint64{}
			for n, p := range all {
				switch {
				case test.never:
				case slices.Contains(test.stuck, n):
					counters[p.Offset] = 1
				default:
					counters[p.Offset] = uint64(i + 1)
				}
			}
			for _, p := range all {
				if v, d := p.observe(start.Add(took), p.count(func(at int) uint64 { return counters[at] })); d {
					got, dead = v, true
				}
			}
		}
		if dead == test.nothing || got.Cause != test.want || dead && (took > test.within || took < test.within-200*time.Millisecond) {
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
