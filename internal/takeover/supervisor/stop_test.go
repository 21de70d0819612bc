package supervisor

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/pair"
)

// TestAbandon checks that a side that is forced down goes down even if it cannot write what could be
// made durable, and that its memory is kept.
func TestAbandon(t *testing.T) {
	for name, why := range map[string]error{
		"busy": errors.New("/srv is in use"),
		"dead": &Died{liveness.Verdict{Cause: liveness.Silence}},
	} {
		s := graveyard(t)
		s.active = &side{name: "left"}
		if err := s.active.mute(); err != nil {
			t.Fatal(err)
		}
		s.active.muted = false // its agent has gone since
		if err := s.Abandon(t.Context(), why); err != nil || s.recorded().Why != why.Error() {
			t.Errorf("%s: %v, %+v", name, err, s.recorded())
		}
	}
}

// TestRecordStop checks that a side that is taken over from while it stops is not recorded as stopped.
func TestRecordStop(t *testing.T) {
	s := graveyard(t)
	if err := s.record(func(r *Record) { r.Saved = false }); err != nil {
		t.Fatal(err)
	}
	saved := func(r *Record) { r.Saved = true }
	over := errors.New("a takeover is under way")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(over)
	if err := s.recordStop(ctx, saved); !errors.Is(err, over) || s.recorded().Saved {
		t.Errorf("%v, %+v", err, s.recorded())
	}
	if err := s.recordStop(t.Context(), saved); err != nil || !s.recorded().Saved {
		t.Errorf("%v, %+v", err, s.recorded())
	}
}

// TestStopAlone checks that Stop does not wait for a side that dies while it stops and nobody watches.
func TestStopAlone(t *testing.T) {
	s := graveyard(t)
	s.Pair.Heartbeat = pair.Heartbeat{Period: time.Millisecond, Limit: time.Second}
	s.active = running(t, s) // as Freeze leaves it
	var died *Died
	if err := s.StopAlone(t.Context()); !errors.As(err, &died) || !strings.Contains(err.Error(), "left") {
		t.Errorf("%v", err)
	}
	if err := s.active.end(); err != nil {
		t.Error(err)
	}
}
