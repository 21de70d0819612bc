package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Series is the outcome of several runs, each with a fresh pair and its own seed.
type Series struct {
	Runs   []*Report `json:"runs"`
	Outage Spread    `json:"outage_ms"`
	Held   int       `json:"held"` // runs in which all held
	// InFlight is the number of runs in which operations were in flight at the crash, and
	// Checked the number of those in which e2fsck had to check the disk before the mount.
	InFlight int `json:"in_flight"`
	Checked  int `json:"checked"`
}

// Spread summarizes measurements of one thing.
type Spread struct {
	N      int     `json:"n"`
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// NewSpread summarizes values, in whatever unit they are.
func NewSpread(values []float64) Spread {
	if len(values) == 0 {
		return Spread{}
	}
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return Spread{N: n, Median: (v[(n-1)/2] + v[n/2]) / 2, Min: v[0], Max: v[n-1]}
}

// RunSeries plays the demo n times. A run that fails ends the series, which then has the
// runs before it.
func RunSeries(ctx context.Context, o Options, n int) (*Series, error) {
	s := &Series{}
	for i := range n {
		run := o
		run.Seed = o.Seed + uint64(i)
		run.Say = io.Discard
		r, err := Run(ctx, run)
		if err != nil {
			return s, fmt.Errorf("run %d of %d, seed %d: %w", i+1, n, run.Seed, err)
		}
		s.add(r)
		fmt.Fprintf(o.Say, "run %2d  %s\n", i+1, r.line())
	}
	if s.Held < n {
		return s, errNotHeld
	}
	return s, nil
}

var errNotHeld = errors.New("not all of it held in every run")

// add adds a run to the series.
func (s *Series) add(r *Report) {
	s.Runs = append(s.Runs, r)
	if r.Held() {
		s.Held++
	}
	if r.InFlight > 0 {
		s.InFlight++
	}
	if r.Checked {
		s.Checked++
	}
	var outages []float64
	for _, r := range s.Runs {
		if r.OutageMS != nil {
			outages = append(outages, *r.OutageMS)
		}
	}
	s.Outage = NewSpread(outages)
}

// line describes a run in one line.
func (r *Report) line() string {
	outage, held := "no answer", "held"
	if r.OutageMS != nil {
		outage = fmt.Sprintf("%4.0f ms", *r.OutageMS)
	}
	if !r.Held() {
		held = "FAILED: " + r.Failures[0]
	}
	return fmt.Sprintf("seed %-10d  outage %s  %s in %d files brought over, %d refused, %d bytes wrong of %d files  %s",
		r.Seed, outage, mib(r.BytesRecovered), r.Files, r.Refused, r.BytesWrong, r.FilesCompared, held)
}

// Write prints a summary of the series for people.
func (s *Series) Write(w io.Writer) error {
	_, err := fmt.Fprintf(w, "outage  median %.0f ms, %.0f to %.0f over %d runs; all held in %d; operations in flight in %d, of these checked by e2fsck %d\n",
		s.Outage.Median, s.Outage.Min, s.Outage.Max, len(s.Runs), s.Held, s.InFlight, s.Checked)
	return err
}
