package morgue

import (
	"fmt"
	"maps"
	"slices"

	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
)

// unplaced says why files have no place: the reason for all of them, or how many have
// none, with the first reason.
func unplaced(p *journal.Placement) string {
	if p.Err != nil {
		return p.Err.Error()
	}
	if len(p.Refused) == 0 {
		return ""
	}
	first := slices.Min(slices.Collect(maps.Keys(p.Refused)))
	return fmt.Sprintf("%d files, the first: inode %d: %v", len(p.Refused), first, p.Refused[first])
}

// commitReport returns what a rescue did, in the terms of a takeover.
func commitReport(r *journal.Rescue, did *journal.Report) takeover.Commit {
	c := takeover.Commit{
		Case: did.Case.String(), Sequence: did.Sequence, Blocks: did.Blocks, Revoked: did.Revoked,
		Data: did.Data, Files: len(did.Written), Replayed: did.Replayed, Check: did.Check, Shared: did.Shared,
		Open: did.Open, Proven: did.Audit != nil && did.Audit.Clean, Mended: did.Mended,
	}
	if p := did.Placement; p != nil {
		c.Placed, c.PlacedBytes, c.Unplaced = len(p.Files), p.Bytes, unplaced(p)
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
