package oracle

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"understudy.dev/understudy/internal/takeover"
)

// liveHead begins the part of docs/ORACLE.md about pairs.
const liveHead = "## Takeovers of running pairs\n"

const liveIntro = liveHead + `
Made by ` + "`make oracle-live`" + ` on %s: do not edit.

The same work, as a service of the active side of a pair, whose kernel dies at a random instant: by a panic, by one within
syncfs(2), or by a hang of all CPUs. The rescue is the takeover, and the side that took over mounts, serves, and is stopped in good
order afterwards. In a third of the cases it works, too, in a directory of its own, until it dies in its turn, once the pair is
protected again. All that either side had reported must be there. The verdicts are as above. A copy of the disk, as each side left
it, must have what was fsynced; and, after a takeover that said that all it wrote was durable, all of the first side's work.

`

// LiveMarkdown returns what docs/ORACLE.md says about cases of pairs.
func LiveMarkdown(results []Result, when time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, liveIntro, when.Format(time.DateOnly))
	total := make(tally)
	var deaths, ops, nodes, durable, undone int
	for _, r := range results {
		total[r.Verdict]++
		deaths, ops, durable, undone = deaths+r.Deaths, ops+r.Ops, durable+r.Plain.Durable, undone+r.Undone
		if r.Tree != nil {
			nodes += r.Tree.Nodes
		}
	}
	fmt.Fprintf(&b, "%d cases with %d takeovers: %v. In all: %d operations, %d files, directories and links compared, %d of them fsynced. Without a rescue, %d differences.\n\n",
		len(results), deaths, total, ops, nodes, durable, undone)
	byConfig(&b, results)
	b.WriteString("\n| crash | cases | takeovers | verdicts | within syncfs | handles open | of these proven sound | checked by e2fsck |\n|---|---|---|---|---|---|---|---|\n")
	for _, crash := range liveCrashes {
		byLiveCrash(&b, crash, results)
	}
	failures(&b, results)
	return b.String()
}

func byLiveCrash(b *strings.Builder, crash Crash, results []Result) {
	count := make(tally)
	cases, takeovers, synced, open, proven, checked := 0, 0, 0, 0, 0, 0
	for _, r := range results {
		if r.Crash != crash {
			continue
		}
		count[r.Verdict]++
		cases, takeovers = cases+1, takeovers+r.Deaths
		if r.InSync {
			synced++
		}
		for _, c := range r.Rescue.commits() {
			if c.Open > 0 {
				open++
			}
			if c.Open > 0 && c.Proven {
				proven++
			}
			if c.Check != "" {
				checked++
			}
		}
	}
	if cases > 0 {
		fmt.Fprintf(b, "| %s | %d | %d | %v | %d | %d | %d | %d |\n", crash, cases, takeovers, count, synced, open, proven, checked)
	}
}

// commits returns the last commits of all takeovers.
func (r *RescueReport) commits() []takeover.Commit {
	var report struct {
		Commits []takeover.Commit `json:"commits"`
	}
	if r == nil || json.Unmarshal(r.Report, &report) != nil {
		return nil
	}
	return report.Commits
}
