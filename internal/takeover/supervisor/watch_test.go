package supervisor

import (
	"testing"
	"time"

	"understudy.dev/understudy/internal/live/pair"
)

// TestRest checks that an understudy rests between its beats, but never for as long as a side that something holds.
func TestRest(t *testing.T) {
	for limit, want := range map[time.Duration]time.Duration{
		60 * time.Millisecond: 375 * time.Millisecond, 400 * time.Millisecond: 500 * time.Millisecond, time.Minute: time.Second,
	} {
		if got := rest(patient(pair.Heartbeat{Limit: limit})); got != want {
			t.Errorf("with a limit of %v it rests for %v; want %v", limit, got, want)
		}
	}
}

// TestHeldUnseen checks that a side is not taken for held because nobody saw it beat while nobody looked.
func TestHeldUnseen(t *testing.T) {
	now := time.Now()
	long := now.Add(-time.Minute)
	w := &watcher{side: &side{name: "right"}, began: now.Add(-heldAfter / 2), held: func(why string) { t.Errorf("it is held: %s", why) }}
	w.side.beaten.Store(&long)
	w.lookForHold(t.Context(), now) // it has no QEMU that could be asked
	if !w.asked.IsZero() {
		t.Error("it was looked for what holds it")
	}
}
