package oracle

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// remadeHead begins the part of docs/ORACLE.md about XFS and btrfs.
const remadeHead = "## XFS and btrfs\n"

const remadeIntro = remadeHead + `
Made by ` + "`make oracle-remade`" + ` on %s: do not edit.

The same work and the same crashes. The logs of XFS and btrfs are not finished from memory: the mount replays them, and what they lack is
made again. So each file and directory must be there, with type, content, size, mode, owner, extended attributes and, but for directories, mtime; but
what was not fsynced may have another inode number, names that were removed may be back, a file that the report
names as refused may be as it is without a rescue, and one whose extended attributes it refuses may have others, and be its owner's only. xfs_repair -n and btrfs check must find nothing. The verdicts are as above.

`

// RemadeMarkdown returns what docs/ORACLE.md says about cases of XFS and btrfs.
func RemadeMarkdown(results []Result, when time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, remadeIntro, when.Format(time.DateOnly))
	of := func(real bool) []Result {
		return slices.DeleteFunc(slices.Clone(results), func(r Result) bool { return (r.Program != "") != real })
	}
	all, real := results, of(true)
	results = of(false)
	total := make(tally)
	var ops, undone int
	for _, r := range results {
		total[r.Verdict]++
		ops, undone = ops+r.Ops, undone+r.Undone
	}
	fmt.Fprintf(&b, "%d cases: %v. In all: %d operations. Without a rescue, %d differences.\n\n", len(results), total, ops, undone)
	byConfig(&b, results)
	remadeTable(&b, results)
	if len(real) > 0 {
		b.WriteString("\nReal programs, as above:\n\n")
		programTable(&b, real)
	}
	failures(&b, all)
	return b.String()
}

// remadeTable writes what was compared, and what was refused.
func remadeTable(b *strings.Builder, results []Result) {
	b.WriteString("\n| configuration | files, directories and links | fsynced | refused | names that are back | differences without a rescue |\n|---|---|---|---|---|---|\n")
	for _, c := range Remade {
		var nodes, durable, refused, back, undone int
		for _, r := range results {
			if r.Config == c.Name && r.Tree != nil {
				nodes, durable, undone = nodes+r.Tree.Nodes, durable+r.Plain.Durable, undone+r.Undone
				refused, back = refused+r.Tree.Forgiven, back+r.Tree.Back
			}
		}
		if nodes > 0 {
			fmt.Fprintf(b, "| %s | %d | %d | %d | %d | %d |\n", c.Name, nodes, durable, refused, back, undone)
		}
	}
}

// remadeLiveHead begins the part of docs/ORACLE.md about pairs with XFS and btrfs.
const remadeLiveHead = "## Takeovers of running pairs with XFS and btrfs\n"

const remadeLiveIntro = remadeLiveHead + `
Made by ` + "`make oracle-remade`" + ` on %s: do not edit.

As the takeovers above, and what must be there is as for XFS and btrfs above.

`

// RemadeLiveMarkdown returns what docs/ORACLE.md says about cases of pairs with XFS and btrfs.
func RemadeLiveMarkdown(results []Result, when time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, remadeLiveIntro, when.Format(time.DateOnly))
	liveTotal(&b, results)
	byConfig(&b, results)
	remadeTable(&b, results)
	b.WriteString("\n| crash | cases | takeovers | verdicts | within syncfs |\n|---|---|---|---|---|\n")
	for _, crash := range liveCrashes {
		if c := crashesBy(crash, results); c.cases > 0 {
			fmt.Fprintf(&b, "| %s | %d | %d | %v | %d |\n", crash, c.cases, c.takeovers, c.verdicts, c.synced)
		}
	}
	failures(&b, results)
	return b.String()
}
