package demo

import (
	"context"
	"fmt"
	"io"
)

// Beside is the outcome of runs on two file systems that took turns: what disturbs one disturbs
// the other.
type Beside struct {
	FS    [2]string  `json:"fs"`
	Sides [2]*Series `json:"sides"` // the runs on each of them
	// Ratio is the ratio of the first one's outage to the second's, taken in each round.
	Ratio Spread `json:"ratio"`
}

// RunBeside plays n rounds of the demo, each once on o.FS and once on another file system,
// with the same files. Which of the two goes first alternates. A run that fails ends it.
func RunBeside(ctx context.Context, o Options, other string, n int) (*Beside, error) {
	b := &Beside{FS: [2]string{o.FS, other}, Sides: [2]*Series{{}, {}}}
	for i := range n {
		for k := range 2 {
			side := (i + k) % 2
			run := o
			run.FS, run.Seed, run.Say = b.FS[side], o.Seed+uint64(i), io.Discard
			r, err := Run(ctx, run)
			if err != nil {
				return b, fmt.Errorf("round %d of %d, %s, seed %d: %w", i+1, n, run.FS, run.Seed, err)
			}
			b.Sides[side].add(r)
			fmt.Fprintf(o.Say, "round %2d  %s  %s\n", i+1, run.FS, r.line())
		}
		b.compare()
	}
	if b.Sides[0].Held < n || b.Sides[1].Held < n {
		return b, errNotHeld
	}
	return b, nil
}

// compare takes the ratio of each round so far.
func (b *Beside) compare() {
	var ratios []float64
	for i, r := range b.Sides[0].Runs {
		if other := b.Sides[1].Runs[i]; r.OutageMS != nil && other.OutageMS != nil {
			ratios = append(ratios, *r.OutageMS / *other.OutageMS)
		}
	}
	b.Ratio = NewSpread(ratios)
}

// Write prints a summary of both sides for people.
func (b *Beside) Write(w io.Writer) error {
	for side, s := range b.Sides {
		fmt.Fprintf(w, "%s  ", b.FS[side])
		if err := s.Write(w); err != nil {
			return err
		}
	}
	if b.Ratio.N == 0 {
		return nil // no round has an outage on both
	}
	_, err := fmt.Fprintf(w, "outage of %s to that of %s: %.2f by the medians; round by round median %.2f, %.2f to %.2f\n",
		b.FS[0], b.FS[1], b.Sides[0].Outage.Median/b.Sides[1].Outage.Median, b.Ratio.Median, b.Ratio.Min, b.Ratio.Max)
	return err
}
