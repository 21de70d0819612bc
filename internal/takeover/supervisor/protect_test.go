package supervisor

import (
	"testing"
	"time"
)

// TestCrashLoop: a pair that does not stay protected waits longer each time, up to a bound,
// and one that does is forgiven.
func TestCrashLoop(t *testing.T) {
	var c crashLoop
	now := time.Unix(1000, 0)
	if p := c.pause(now); p != 0 {
		t.Errorf("the first pause is %v", p)
	}
	var pauses []time.Duration
	for range 10 {
		c.protected(now)
		now = now.Add(calm - time.Second)
		pauses = append(pauses, c.pause(now))
	}
	for i, p := range pauses {
		if want := min(time.Second<<i, maxPause); p != want {
			t.Errorf("pause %d is %v, want %v", i, p, want)
		}
	}
	c.protected(now)
	if p := c.pause(now.Add(calm)); p != 0 {
		t.Errorf("after a calm time the pause is %v", p)
	}
	c.failed()
	c.failed()
	if p := c.pause(now); p != 2*time.Second {
		t.Errorf("after two attempts that failed the pause is %v", p)
	}
}
