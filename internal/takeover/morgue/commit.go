package morgue

import (
	"fmt"

	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
)

// commitReport is what a rescue did, as a takeover tells it.
func commitReport(r *journal.Rescue, did *journal.Report) takeover.Commit {
	c := takeover.Commit{
		Case: did.Case.String(), Sequence: did.Sequence, Blocks: did.Blocks, Revoked: did.Revoked,
		Data: did.Data, Files: len(did.Written), Replayed: did.Replayed, Check: did.Check,
		Open: did.Open, Proven: did.Audit != nil && did.Audit.Clean,
	}
	for _, m := range did.AfterMount {
		if len(m.Filled)+len(m.Holes) > 0 {
			c.Moved++
		}
		if m.Cut {
			c.Cut++
		}
	}
	for _, s := range did.Steps {
		c.Steps = append(c.Steps, wire.PhaseTime{Name: s.Name, Took: s.Took})
	}
	if len(r.Holders) > 0 && c.Check != "" {
		c.Check += fmt.Sprintf(" %v", r.Holders)
	}
	return c
}
