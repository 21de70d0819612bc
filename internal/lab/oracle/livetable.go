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
	liveTotal(&b, results)
	byConfig(&b, results)
	b.WriteString("\n| crash | cases | takeovers | verdicts | within syncfs | handles open | of these proven sound | checked by e2fsck |\n|---|---|---|---|---|---|---|---|\n")
	for _, crash := range liveCrashes {
		if c := crashesBy(crash, results); c.cases > 0 {
			fmt.Fprintf(&b, "| %s | %d | %d | %v | %d | %d | %d | %d |\n", crash, c.cases, c.takeovers, c.verdicts, c.synced, c.open, c.proven, c.checked)
		}
	}
	failures(&b, results)
	return b.String()
}

// liveTotal writes what was done in all cases.
func liveTotal(b *strings.Builder, results []Result) {
	total := make(tally)
	var deaths, ops, nodes, durable, undone int
	for _, r := range results {
		total[r.Verdict]++
		deaths, ops, durable, undone = deaths+r.Deaths, ops+r.Ops, durable+r.Plain.Durable, undone+r.Undone
		if r.Tree != nil {
			nodes += r.Tree.Nodes
		}
	}
	fmt.Fprintf(b, "%d cases with %d takeovers: %v. In all: %d operations, %d files, directories and links compared, %d of them fsynced. Without a rescue, %d differences.\n\n",
		len(results), deaths, total, ops, nodes, durable, undone)
}

// crashesOf is what happened in the cases of one kind of crash.
type crashesOf struct {
	verdicts                                        tally
	cases, takeovers, synced, open, proven, checked int
}

func crashesBy(crash Crash, results []Result) crashesOf {
	c := crashesOf{verdicts: make(tally)}
	for _, r := range results {
		if r.Crash != crash {
			continue
		}
		c.verdicts[r.Verdict]++
		c.cases, c.takeovers = c.cases+1, c.takeovers+r.Deaths
		if r.InSync {
			c.synced++
		}
		for _, commit := range r.Rescue.commits() {
			if commit.Open > 0 {
				c.open++
			}
			if commit.Open > 0 && commit.Proven {
				c.proven++
			}
			if commit.Check != "" {
				c.checked++
			}
		}
	}
	return c
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
