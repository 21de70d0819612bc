package systems

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

const tableHead = `# Programs on a pair

Made by ` + "`make systems`" + ` on %s: do not edit.

Both partitions run a Debian with systemd, and the kernel of its own /boot, with all of these programs at work on shared disks, ext4
with Debian's defaults, one virtual CPU a side. The kernel of the active side dies by a panic at a random moment. What a program had answered
for is told on the console, which outlives the guest; each program's own check then says what is there: after the takeover, and, in the same
run, on a copy of the disks as the crash left them, mounted and started as after a boot. Its service was killed with the kernel in both cases, as
by SIGKILL.
`

const suiteHead = `
## %s (kernel %s)

%d runs; work of %v to %v before the kernel died; %d to %d KiB of unsaved data brought over each; refused: %d.

| program | its check | acknowledged | lost after the takeover | check after it | lost after a boot | check after a boot |
|---|---|---|---|---|---|---|
`

// Markdown returns docs/SYSTEMS.md: a table for each suite.
func Markdown(results []*Result, when time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, tableHead, when.Format(time.DateOnly))
	for _, s := range Suites {
		of := slices.DeleteFunc(slices.Clone(results), func(r *Result) bool { return r.Suite != s })
		if len(of) > 0 {
			suiteTable(&b, s, of)
		}
	}
	return b.String()
}

func suiteTable(b *strings.Builder, s Suite, results []*Result) {
	var after []time.Duration
	var kib []int64
	refused := 0
	for _, r := range results {
		after, kib, refused = append(after, r.After.Round(time.Second)), append(kib, r.Bytes>>10), refused+r.Refused
	}
	fmt.Fprintf(b, suiteHead, s.Title, results[0].Kernel, len(results), slices.Min(after), slices.Max(after), slices.Min(kib), slices.Max(kib), refused)
	for i, first := range results[0].Of {
		acknowledged := 0
		var taken, plain tally
		for _, r := range results {
			o := r.Of[i]
			acknowledged += o.Acknowledged
			taken.add(o.Acknowledged, o.Takeover)
			plain.add(o.Acknowledged, o.Plain)
		}
		fmt.Fprintf(b, "| %s | %s | %d | %d | %s | %d | %s |\n", first.Title, first.Check, acknowledged, taken.lost, taken.text(len(results)), plain.lost, plain.text(len(results)))
	}
}

// tally is the outcome of the checks of several runs.
type tally struct {
	lost, good int
	said       []string
}

func (t *tally) add(acknowledged int, j Judgement) {
	t.lost += max(0, acknowledged-j.Found)
	if j.Said == "" {
		t.good++
	} else if !slices.Contains(t.said, j.Said) {
		t.said = append(t.said, j.Said)
	}
}

func (t *tally) text(of int) string {
	s := fmt.Sprintf("%d of %d good", t.good, of)
	if len(t.said) > 0 {
		s += ": " + strings.ReplaceAll(strings.Join(t.said, "; "), "|", "/")
	}
	return s
}

// Exact returns what is missing or wrong after the takeover of a run; it is empty if nothing is.
func (r *Result) Exact() (wrong []string) {
	if r.Refused > 0 {
		wrong = append(wrong, fmt.Sprintf("%d things were refused", r.Refused))
	}
	for _, o := range r.Of {
		if lost := o.Acknowledged - o.Takeover.Found; lost != 0 {
			wrong = append(wrong, fmt.Sprintf("%s: %d were acknowledged, and %d are there", o.Name, o.Acknowledged, o.Takeover.Found))
		}
		if o.Takeover.Said != "" {
			wrong = append(wrong, o.Name+": "+o.Takeover.Said)
		}
	}
	return wrong
}
