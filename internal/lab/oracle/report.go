package oracle

import (
	"fmt"
	"slices"
	"strings"
)

// Cases returns count cases, from the seed first on. Configurations, kernels and crashes
// come in turn, so that a few seeds see something of everything; lists that are not empty
// restrict them.
func Cases(first uint64, count int, configs, kernels, crashes []string) ([]Case, error) {
	var pairs []Case
	if len(kernels) == 0 {
		kernels = Kernels
	}
	if len(configs) == 0 {
		for _, c := range Configs {
			configs = append(configs, c.Name)
		}
	}
	if len(crashes) == 0 {
		for _, c := range Crashes {
			crashes = append(crashes, string(c))
		}
	}
	for i, name := range configs {
		c, err := FindConfig(name)
		if err != nil {
			return nil, err
		}
		// Neighbours have different kernels.
		for j := range kernels {
			if kernel := kernels[(i+j)%len(kernels)]; c.On(kernel) {
				pairs = append(pairs, Case{Config: c, Kernel: kernel})
			}
		}
	}
	for _, c := range crashes {
		if !slices.Contains(append(slices.Clone(Crashes), Clean), Crash(c)) {
			return nil, fmt.Errorf("no crash %q", c)
		}
	}
	if len(pairs) == 0 {
		return nil, fmt.Errorf("no kernel of %s has that", strings.Join(kernels, ", "))
	}
	var cases []Case
	for i := range count {
		// The pair follows from the seed alone.
		seed := first + uint64(i)
		c := pairs[int(seed*7%uint64(len(pairs)))]
		c.Seed, c.Crash = seed, Crash(crashes[seed%uint64(len(crashes))])
		cases = append(cases, c)
	}
	return cases, nil
}

// WithPrograms gives cases programs as their workload, in turn; without names, all
// programs. The cases end by Panic or Kill.
func WithPrograms(cases []Case, names []string) ([]Case, error) {
	if len(names) == 0 {
		for _, p := range Programs {
			names = append(names, p.Name)
		}
	}
	for i := range cases {
		p, err := FindProgram(names[i%len(names)])
		if err != nil {
			return nil, err
		}
		cases[i].Program = p
		if cases[i].Crash != Kill {
			cases[i].Crash = Panic
		}
	}
	return cases, nil
}

// String returns one line, and more if the case failed.
func (r Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d %s %s %s: ", r.Seed, r.Config, r.Kernel, r.Crash)
	if r.Program != "" {
		fmt.Fprintf(&b, "%s, progress %d", r.Program, r.Ops)
	} else {
		fmt.Fprintf(&b, "%d ops of %d threads", r.Ops, r.Threads)
	}
	if r.Tree != nil {
		fmt.Fprintf(&b, ", %d nodes compared, pending %d (%d done, %d in part)", r.Tree.Nodes, r.Pending, r.Tree.Done, r.Tree.Partial)
	}
	fmt.Fprintf(&b, ", %d durable; without a rescue %d differ; %.0f s: %s", r.Plain.Durable, r.Undone, r.Seconds, r.Verdict)
	if r.Verdict == Refused && r.Tree != nil {
		fmt.Fprintf(&b, ", %d differences as without a rescue", r.Tree.Forgiven)
	}
	if r.Verdict == Refused {
		fmt.Fprintf(&b, ": %s", strings.TrimSpace(r.Rescue.Said))
	}
	if r.Unmountable != "" {
		fmt.Fprintf(&b, "; without a rescue: %s", r.Unmountable)
	}
	if r.Verdict.Good() {
		return b.String()
	}
	if r.Rescue != nil && r.Rescue.Exit != 0 {
		fmt.Fprintf(&b, "\n  the rescue ended with status %d: %s", r.Rescue.Exit, strings.TrimSpace(r.Rescue.Said))
	}
	if r.Error != "" {
		fmt.Fprintf(&b, "\n  %s", r.Error)
	}
	show := func(title string, c *Comparison) {
		if c == nil || len(c.Findings) == 0 {
			return
		}
		fmt.Fprintf(&b, "\n  %s: %d findings, %d of them durable", title, len(c.Findings), c.Lost())
		for _, f := range c.Findings[:min(len(c.Findings), 20)] {
			fmt.Fprintf(&b, "\n    %v", f)
			if f.Durable {
				b.WriteString(" (durable)")
			}
		}
	}
	show("rescued", r.Tree)
	show("without a rescue", &r.Plain)
	for title, said := range map[string]string{"e2fsck of the rescued": r.Fsck, "e2fsck without a rescue": r.PlainBad} {
		if said != "" {
			fmt.Fprintf(&b, "\n  %s: %s", title, strings.ReplaceAll(strings.TrimSpace(said), "\n", "\n    "))
		}
	}
	fmt.Fprintf(&b, "\n  pending: %s", r.PendingOps)
	fmt.Fprintf(&b, "\n  memory and disks: %s\n  again: %s", r.Kept, r.Replayed)
	return b.String()
}
