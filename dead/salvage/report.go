package salvage

import (
	"understudy.dev/understudy/dead/pagecache"
)

// Report sums up a plan.
type Report struct {
	Files   int   // in the plan
	Data    int   // of them, with unsaved bytes
	Bytes   int64 // in memory, and in the plan
	Runs    int
	Deleted int // without a name, left alone
	// Refused counts pages by reason; a refusal of a whole file counts as one.
	Refused map[pagecache.Reason]uint64
	Faults  int // walks that could not be completed
}

// Report sums up the plan.
func (p *Plan) Report() Report {
	r := Report{
		Files:   len(p.Files),
		Deleted: p.Deleted,
		Refused: make(map[pagecache.Reason]uint64),
		Faults:  len(p.Faults),
	}
	for i := range p.Files {
		runs := p.Files[i].Runs
		if len(runs) > 0 {
			r.Data++
		}
		r.Runs += len(runs)
		for j := range runs {
			for _, n := range runs[j].Physical() {
				r.Bytes += n
			}
		}
	}
	for _, refusal := range p.Refused {
		r.Refused[refusal.Reason] += max(1, refusal.Pages)
	}
	return r
}

// Complete reports whether nothing unsaved was left out.
func (r Report) Complete() bool { return len(r.Refused) == 0 && r.Faults == 0 }
