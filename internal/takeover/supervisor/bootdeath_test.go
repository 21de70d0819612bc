package supervisor

import (
	"testing"
	"time"
)

func TestHangWatch(t *testing.T) {
	type look struct {
		ticks uint64
		ran   time.Duration
		hangs bool
	}
	for name, looks := range map[string][]look{
		"it ticks": {{1, time.Second, false}, {2, hangRan, false}, {3, 2 * hangRan, false}},
		"it hangs": {{1, time.Second, false}, {1, hangRan, false}, {1, hangRan + time.Second, true}},
		"it hangs after a while": {
			{1, time.Second, false}, {7, hangRan - time.Second, false}, {7, 2*hangRan - 2*time.Second, false}, {7, 2*hangRan - time.Second, true},
		},
		"all its CPUs are idle": {{5, time.Second, false}, {5, 2 * time.Second, false}, {5, 2 * time.Second, false}},
	} {
		t.Run(name, func(t *testing.T) {
			var h hangWatch
			for n, l := range looks {
				if got := h.hangs(l.ticks, l.ran); got != l.hangs {
					t.Errorf("look %d, %d ticks after %v: %v", n, l.ticks, l.ran, got)
				}
			}
		})
	}
}
