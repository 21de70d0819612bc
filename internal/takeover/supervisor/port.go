package supervisor

import (
	"encoding/json"
	"fmt"
	"time"

	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/live/qmp"
	"understudy.dev/understudy/internal/live/wire"
)

// agentLimit is how long an agent may be gone from its port. An agent that is a service is
// restarted at once, and one that is PID 1 ends only with its kernel.
const agentLimit = 30 * time.Second

// followPort notes when the agent leaves its port, and when it is there again.
func (sd *side) followPort(e qmp.Event) {
	var change struct {
		ID   string `json:"id"`
		Open bool   `json:"open"`
	}
	if e.Name != qmp.EventPortChange || json.Unmarshal(e.Data, &change) != nil || change.ID != partition.AgentPort {
		return
	}
	if change.Open {
		sd.left.Store(nil)
		return
	}
	sd.left.Store(&e.Came)
}

// lookForAgent judges a side whose agent is gone. An understudy without an agent cannot take over, and
// is as good as dead; an active side without one still serves, so that is only reported as a trouble.
func (w *watcher) lookForAgent(now time.Time) (liveness.Verdict, bool) {
	left := w.side.left.Load()
	if left == nil || now.Sub(*left) < agentLimit {
		w.alone = false
		return liveness.Verdict{}, false
	}
	detail := fmt.Sprintf("the agent of partition %s has been gone for %v", w.side.name, agentLimit)
	if w.panicked != nil && !w.alone { // it is the active side
		w.alone = true
		w.trouble(wire.TroubleNotice{What: detail})
	}
	return liveness.Verdict{Cause: liveness.Degraded, At: now, Detail: detail}, w.panicked == nil || w.fatal
}
