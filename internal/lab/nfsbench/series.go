package nfsbench

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// Plan says how often to run a row.
type Plan struct {
	Row  Row
	Runs int
}

// ErrNotHeld is the error of runs in which not all held.
var ErrNotHeld = errors.New("not all of it held in every run")

// RunAll runs all rows in turns, so that whatever else the machine does affects all
// alike, and writes a line for each run. The reports so far come with an error, too.
func RunAll(ctx context.Context, o Options, plan []Plan, seed uint64, out io.Writer) ([]*Report, error) {
	reports := []*Report{}
	most := 0
	for _, p := range plan {
		most = max(most, p.Runs)
	}
	held := true
	for i := range most {
		for _, p := range plan {
			if i >= p.Runs {
				continue
			}
			r, err := Run(ctx, o, p.Row, seed+uint64(i))
			if err != nil && (r == nil || ctx.Err() != nil) {
				return reports, fmt.Errorf("%s, run %d, seed %d: %w", p.Row.Name, i+1, seed+uint64(i), err)
			}
			if err != nil {
				r.Broken = err.Error()
				r.fail("%s", r.Broken)
			}
			reports = append(reports, r)
			held = held && len(r.Failures) == 0
			fmt.Fprintf(out, "run %2d  %s\n", i+1, r.line())
		}
	}
	if !held {
		return reports, ErrNotHeld
	}
	return reports, nil
}
