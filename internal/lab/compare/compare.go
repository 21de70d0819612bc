// Package compare compares ways of doing the same thing on a machine that does other
// things, too: each round does every way once, in changing order, so that what
// disturbs one disturbs the others.
package compare

import (
	"slices"
	"testing"
	"time"
)

// Way is one way of doing something. Do returns how long that took, without the time for
// preparations.
type Way struct {
	Name string
	Do   func() time.Duration
}

// Time is a Way that is measured as a whole.
func Time(b *testing.B, name string, do func() error) Way {
	return Way{name, func() time.Duration {
		start := time.Now()
		err := do()
		took := time.Since(start)
		if err != nil {
			b.Fatal(err)
		}
		return took
	}}
}

// Run does the ways in turns, at least five times each, and reports for each the median
// and the 90th percentile, in milliseconds.
func Run(b *testing.B, ways ...Way) *Rounds {
	r := &Rounds{took: make(map[string][]time.Duration)}
	round := 0
	do := func() {
		for i := range ways {
			w := ways[(i+round)%len(ways)]
			r.took[w.Name] = append(r.took[w.Name], w.Do())
		}
		round++
	}
	for b.Loop() {
		do()
	}
	for round < 5 {
		do()
	}
	b.ReportMetric(0, "ns/op") // it would be the sum of all ways, which means nothing
	for _, w := range ways {
		ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
		b.ReportMetric(ms(quantile(r.took[w.Name], 0.5)), w.Name+"-ms")
		b.ReportMetric(ms(quantile(r.took[w.Name], 0.9)), w.Name+"-p90-ms")
	}
	return r
}

// Rounds are how long each way took, round by round.
type Rounds struct {
	took map[string][]time.Duration
}

// Ratio reports, under a name, how many times as long one way took as another: the median
// over all rounds, and the 10th and 90th percentiles.
func (r *Rounds) Ratio(b *testing.B, name, of, to string) {
	var ratios []float64
	for i, d := range r.took[of] {
		ratios = append(ratios, float64(d)/float64(r.took[to][i]))
	}
	for suffix, q := range map[string]float64{"": 0.5, "-p10": 0.1, "-p90": 0.9} {
		b.ReportMetric(quantile(ratios, q), name+suffix)
	}
}

// quantile returns the element at quantile q: a share q of all elements are not larger.
func quantile[T float64 | time.Duration](all []T, q float64) T {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}
