package main

import (
	"fmt"
	"io"

	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/offline"
)

// lastCommit is what the dead kernel had accepted and not committed, carried out
// on a recording of the disk: what is in that goes to the overlay before anything
// mounts it.
type lastCommit struct {
	report takeover.Commit
	rescue *journal.Rescue
	did    *journal.Report
	raw    []offline.Raw
}

// finishCommit plans and records the last commit. That it is refused is no error
// of ours: the reason is the second result, and the disk is what an ordinary crash
// leaves then.
func (a *application) finishCommit(disk io.ReaderAt) (c *lastCommit, refused error, err error) {
	c = &lastCommit{}
	recording := jbd2.NewRecording(disk)
	if c.rescue, err = journal.Plan(a.memory.Cache, a.fsys.Super, recording); err != nil {
		return nil, nil, err
	}
	c.did, refused = c.rescue.Finish(recording)
	c.report = commitReport(c.rescue, c.did)
	c.report.Disk = a.disk
	if refused != nil {
		// Some of it may be recorded. It is as good as a crash, and better left out.
		c.did.Settled, c.report.Check = nil, ""
		return c, refused, nil
	}
	for off, data := range recording.Changed() {
		c.raw = append(c.raw, offline.Raw{Off: off, Data: data})
	}
	return c, nil, nil
}

// commitReport is what a rescue did, as a takeover tells it.
func commitReport(r *journal.Rescue, did *journal.Report) takeover.Commit {
	c := takeover.Commit{
		Case: did.Case.String(), Sequence: did.Sequence, Blocks: did.Blocks, Revoked: did.Revoked,
		Data: did.Data, Files: len(did.Settled), Replayed: did.Replayed, Check: did.Check,
		Open: did.Open, Proven: did.Audit != nil && did.Audit.Clean,
	}
	for _, m := range did.Moved {
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
