package oracle

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// intro is what a reader must know of the tables.
const intro = `# The oracle

Made by ` + "`make oracle`" + ` on %s: do not edit.

Each case is a guest with a stock Debian kernel under QEMU whose threads, each in a tree of its own, create, write, append, store
through mappings, truncate, allocate, punch holes, rename (over files and directories, too), link, delete, make and remove
directories and symbolic links, change modes, owners, times, attributes and capabilities, keep deleted files open, and fsync: all
at random, from a seed. Each operation is reported to the host before the next one begins. The guest dies at a random instant. The
rescue is ` + "`understudy salvage apply`" + ` with its memory and its disk and nothing else. Then the disk is mounted by the kernel that died,
and every name, type, inode, content, size, mode, owner, attribute, link count and mtime must be as the reports say; only what a
thread had begun and not reported may be absent, done, or, for a write, done in part. e2fsck must find nothing.

- exact: all that is so.
- refused: the rescue said that it could not do all. Each file is exact, or as it is without a rescue.
- differs, unclean, failed, loss: a failure; loss is one of something that was fsynced.

In each case a copy of the disk is mounted without any rescue, too, and what was fsynced must be there; but not without a journal:
there fsync itself does not write an inode that only ext4 marked as changed (ext4_fsync_nojournal in the kernel's fs/ext4/fsync.c).
Where the kernel cannot even mount that copy, and the rescue is exact, the case is named at the end.
e2fsck looks at that copy, too: what it finds there is the kernel's own recovery.

`

// tally counts verdicts.
type tally map[Verdict]int

func (t tally) String() string {
	var parts []string
	for _, v := range []Verdict{Exact, Refused, Plain, Differs, Unclean, Failed, Loss, Broken} {
		if t[v] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", t[v], v))
		}
	}
	return strings.Join(parts, ", ")
}

// Markdown returns what docs/ORACLE.md says about results.
func Markdown(results []Result, when time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, intro, when.Format(time.DateOnly))
	var real []Result
	for i := len(results) - 1; i >= 0; i-- {
		if results[i].Program != "" {
			real = append(real, results[i])
		}
	}
	results = slices.DeleteFunc(slices.Clone(results), func(r Result) bool { return r.Program != "" })
	total := make(tally)
	var ops, nodes, durable, pending, done, partial, undone, unclean int
	for _, r := range results {
		total[r.Verdict]++
		ops, durable, pending, undone = ops+r.Ops, durable+r.Plain.Durable, pending+r.Pending, undone+r.Undone
		if r.Rescue != nil && r.PlainBad != "" {
			unclean++
		}
		if r.Tree != nil {
			nodes, done, partial = nodes+r.Tree.Nodes, done+r.Tree.Done, partial+r.Tree.Partial
		}
	}
	fmt.Fprintf(&b, "%d cases: %v. In all: %d operations, %d files, directories and links compared, %d of them fsynced.\n", len(results), total, ops, nodes, durable)
	fmt.Fprintf(&b, "Of %d operations that were not reported, %d were done and %d done in part. Without a rescue, %d differences, and e2fsck finds something wrong in %d cases.\n",
		pending, done, partial, undone, unclean)
	b.WriteString("\n## By configuration and kernel\n\n")
	byConfig(&b, results)
	b.WriteString("\n## By crash\n\n")
	byCrash(&b, results)
	byRoad(&b, results)
	byProgram(&b, real)
	failures(&b, append(results, real...))
	return b.String()
}

// head begins a table with a column for each kernel that has results, and returns these kernels.
func head(b *strings.Builder, what string, results []Result) (kernels []string) {
	for _, k := range Kernels {
		if slices.ContainsFunc(results, func(r Result) bool { return r.Kernel == k }) {
			kernels = append(kernels, k)
		}
	}
	fmt.Fprintf(b, "| %s | %s |\n|---|%s\n", what, strings.Join(kernels, " | "), strings.Repeat("---|", len(kernels)))
	return kernels
}

// byKernel tallies by kernel the results for which of is true.
func byKernel(results []Result, of func(Result) bool) map[string]tally {
	row := make(map[string]tally)
	for _, r := range results {
		if of(r) {
			if row[r.Kernel] == nil {
				row[r.Kernel] = make(tally)
			}
			row[r.Kernel][r.Verdict]++
		}
	}
	return row
}

const programIntro = `
## Real programs

SQLite, with synchronous=OFF and both kinds of journal, dies in the midst of its transactions: each that it had confirmed must be
there, and PRAGMA integrity_check be content. tar dies midway: all files before the one it was at must be whole. git clone, tar and
dpkg --unpack have just ended, without a sync: the whole tree must be the same, and git fsck and git status, tar --compare,
dpkg --verify and md5sum find nothing. fsstress and fsx are not packaged for Debian 12.

`

func byProgram(b *strings.Builder, results []Result) {
	if len(results) == 0 {
		return
	}
	b.WriteString(programIntro)
	programTable(b, results)
}

func programTable(b *strings.Builder, results []Result) {
	kernels := head(b, "program", results)
	for _, p := range Programs {
		row := byKernel(results, func(r Result) bool { return r.Program == p.Name })
		fmt.Fprintf(b, "| %s |", p.Name)
		for _, k := range kernels {
			fmt.Fprintf(b, " %v |", row[k])
		}
		b.WriteString("\n")
	}
}

func byConfig(b *strings.Builder, results []Result) {
	kernels := head(b, "configuration", results)
	for _, c := range slices.Concat(Configs, Rare, Remade) {
		row := byKernel(results, func(r Result) bool { return r.Config == c.Name })
		if len(row) == 0 {
			continue
		}
		fmt.Fprintf(b, "| %s |", c.Name)
		for _, k := range kernels {
			switch text := row[k].String(); {
			case text != "":
				fmt.Fprintf(b, " %s |", text)
			case !c.On(k):
				b.WriteString(" (has none) |")
			default:
				b.WriteString(" |")
			}
		}
		b.WriteString("\n")
	}
}

func byCrash(b *strings.Builder, results []Result) {
	b.WriteString("| crash | cases | verdicts | within syncfs | within a commit | pages under writeback | handles open | transaction committing | not reported |\n" +
		"|---|---|---|---|---|---|---|---|---|\n")
	for _, crash := range append(slices.Clone(Crashes), Clean) {
		count := make(tally)
		cases, synced, committed, writeback, open, committing, pending := 0, 0, 0, 0, 0, 0, 0
		for _, r := range results {
			if r.Crash != crash {
				continue
			}
			count[r.Verdict]++
			cases, pending = cases+1, pending+r.Pending
			c := r.Rescue.commit()
			for _, f := range []struct {
				is    bool
				count *int
			}{
				{r.InSync, &synced}, {r.InCommit, &committed}, {r.Writeback > 0, &writeback},
				{c.Open > 0, &open}, {c.Case == "committing", &committing},
			} {
				if f.is {
					*f.count++
				}
			}
		}
		if cases > 0 {
			fmt.Fprintf(b, "| %s | %d | %v | %d | %d | %d | %d | %d | %d |\n", crash, cases, count, synced, committed, writeback, open, committing, pending)
		}
	}
}

const roadIntro = `
## Operations in flight

Parts of them may be in the last commit. What is half done is completed or taken back, where the rest of the metadata says how. A
transaction that the audit proves sound then is mounted without a look at the rest of the disk; otherwise e2fsck looks at all of it before. In each case the oracle has its own e2fsck look at what was rescued.

| road | cases | verdicts |
|---|---|---|
`

// byRoad writes how often each road was taken, with the verdicts.
func byRoad(b *strings.Builder, results []Result) {
	count, cases := make(map[string]tally), make(map[string]int)
	why := make(map[string]int)
	moved, cut := make(tally), make(tally)
	for _, r := range results {
		c := r.Rescue.commit()
		if c.Moved > 0 {
			moved[r.Verdict]++
		}
		if c.Cut > 0 {
			cut[r.Verdict]++
		}
		road := r.Rescue.road()
		if count[road] == nil {
			count[road] = make(tally)
		}
		count[road][r.Verdict]++
		cases[road]++
		if road == roadChecked {
			why[firstReason(c.Check)]++
		}
	}
	b.WriteString(roadIntro)
	for _, road := range roads {
		if cases[road] > 0 {
			fmt.Fprintf(b, "| %s | %d | %v |\n", road, cases[road], count[road])
		}
	}
	inFlight(b, results)
	for _, mended := range []struct {
		what  string
		count tally
	}{
		{"Files whose extent trees were mid-update were restored from memory, where a check may lose them", moved},
		{"Files whose truncation was in flight were truncated after the check", cut},
	} {
		if len(mended.count) > 0 {
			fmt.Fprintf(b, "\n%s: %v.\n", mended.what, mended.count)
		}
	}
	if len(why) == 0 {
		return
	}
	b.WriteString("\nWhat the audit found first where it proved nothing, and, in brackets, what of it could not be completed:\n\n")
	for _, reason := range slices.Sorted(maps.Keys(why)) {
		fmt.Fprintf(b, "- %d: %s\n", why[reason], reason)
	}
}

// inFlight writes in how many of the cases with open handles no check was needed.
func inFlight(b *strings.Builder, results []Result) {
	open, proven, mended := 0, 0, 0
	for _, r := range results {
		c := r.Rescue.commit()
		if c.Open == 0 || c.Refused {
			continue
		}
		open++
		if c.Proven {
			proven++
		}
		if c.Proven && len(c.Mended) > 0 {
			mended++
		}
	}
	fmt.Fprintf(b, "\nHandles were open in %d cases: proven in %d, in %d of them once something was completed or taken back; checked by e2fsck in %d.\n",
		open, proven, mended, open-proven)
}

var (
	numbers = regexp.MustCompile(`\b(0x[0-9a-f]+|\d+)\b`)
	reasons = regexp.MustCompile(`^\d+ operations were in flight(?:: ([^;]*))?(?:;.*?)??(?:; not completed: (.*))? \[.*\]$`)
)

// firstReason returns the first reason for a check, without its numbers.
func firstReason(check string) string {
	m := reasons.FindStringSubmatch(check)
	switch {
	case m == nil:
		return check
	case m[1] == "":
		return "nothing to audit: all was on the disk"
	}
	reason := strings.TrimSpace(m[1])
	if m[2] != "" {
		reason += " (" + strings.TrimPrefix(m[2], "mend: ") + ")"
	}
	return numbers.ReplaceAllString(reason, "N")
}

// failures lists all cases that are not exact.
func failures(b *strings.Builder, results []Result) {
	first := true
	for _, r := range results {
		if (r.Verdict == Exact || r.Verdict == Plain) && r.Unmountable == "" {
			continue
		}
		if first {
			b.WriteString("\n## What was not exact, or cannot be mounted without a rescue\n\n")
			first = false
		}
		why := r.Error
		if r.Rescue != nil && why == "" {
			why = r.Rescue.Said
		}
		if r.Tree != nil && len(r.Tree.Findings) > 0 {
			why = fmt.Sprintf("%d findings: %v. %s", len(r.Tree.Findings), r.Tree.Findings[0], why)
		}
		if r.Unmountable != "" {
			why = "Without a rescue: " + r.Unmountable
		}
		why, _, _ = strings.Cut(strings.TrimSpace(why), "\n")
		what := string(r.Crash)
		if r.Program != "" {
			what += ", " + r.Program
		}
		fmt.Fprintf(b, "- seed %d, %s, %s, %s: %s. %s\n", r.Seed, r.Config, r.Kernel, what, r.Verdict, why)
	}
}
