package supervisor

import (
	"errors"
	"net"
	"testing"

	"understudy.dev/understudy/internal/live/wire"
)

// TestAbandon: a pair is given up, and what is in memory only kept, also if its active side cannot
// write that, or does not answer.
func TestAbandon(t *testing.T) {
	s := graveyard(t)
	here, there := net.Pipe()
	t.Cleanup(func() { _ = there.Close() })
	s.active = &side{name: "right", agent: wire.New(here, wire.FromAgent, nil)}
	if err := s.active.agent.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Abandon(t.Context(), errors.New("it was forced down")); err != nil {
		t.Error(err)
	}
	if r := s.recorded(); r.Why != "it was forced down" {
		t.Errorf("record %+v", r)
	}
}
