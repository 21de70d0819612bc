package supervisor

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"understudy.dev/understudy/internal/live/qmp"
	"understudy.dev/understudy/internal/live/wire"
)

// TestAgentGone checks that an agent that is restarted is not missed. An agent that stays away
// means that the understudy is dead; for the active side it is a trouble, which is reported once.
func TestAgentGone(t *testing.T) {
	at := time.Unix(1000, 0)
	change := func(id string, open bool) qmp.Event {
		b, err := json.Marshal(map[string]any{"id": id, "open": open})
		if err != nil {
			t.Fatal(err)
		}
		stepped := at.Add(-time.Hour) // by the host's clock, which was set back since
		return qmp.Event{Name: qmp.EventPortChange, Time: stepped, Came: at, Data: b}
	}
	for _, tt := range []struct {
		name          string
		events        []qmp.Event
		after         time.Duration
		active, fatal bool
		dead          bool
		told          int
	}{
		{"never", nil, time.Hour, true, true, false, 0},
		{"back", []qmp.Event{change("port-agent", false), change("port-agent", true)}, time.Hour, false, false, false, 0},
		{"another port", []qmp.Event{change("other", false)}, time.Hour, false, false, false, 0},
		{"not for long", []qmp.Event{change("port-agent", false)}, agentLimit - 1, false, false, false, 0},
		{"understudy", []qmp.Event{change("port-agent", false)}, agentLimit, false, false, true, 0},
		{"active", []qmp.Event{change("port-agent", true), change("port-agent", false)}, agentLimit, true, false, false, 1},
		{"active, degraded is dead", []qmp.Event{change("port-agent", false)}, agentLimit, true, true, true, 1},
		{"no event of a port", []qmp.Event{{Name: qmp.EventPortChange, Came: at, Data: []byte("[]")}, {Name: "STOP", Came: at}}, time.Hour, false, false, false, 0},
	} {
		told := 0
		w := &watcher{side: &side{name: "left"}, fatal: tt.fatal, trouble: func(wire.TroubleNotice) { told++ }}
		if tt.active {
			w.panicked = func() (int, bool) { return 0, false }
		}
		for _, e := range slices.Clone(tt.events) {
			w.side.followPort(e)
		}
		for range 2 {
			if _, dead := w.lookForAgent(at.Add(tt.after)); dead != tt.dead {
				t.Errorf("%s: dead is %v", tt.name, dead)
			}
		}
		if told != tt.told {
			t.Errorf("%s: told %d times", tt.name, told)
		}
	}
}
