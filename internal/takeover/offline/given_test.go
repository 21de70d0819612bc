package offline

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// TestRecoverRefused checks that what a takeover has refused stays refused, unless the dead
// side's memory is applied from the start, and that a run that fails reports what it has refused.
func TestRecoverRefused(t *testing.T) {
	whole, part, broken := &Report{Complete: true}, &Report{}, errors.New("broken off")
	type outcome struct {
		report *Report
		err    error
	}
	image := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		progress      takeover.Progress
		active, heir  outcome
		refused, ends bool
		reports       int
	}{
		"given, and all of it":       {takeover.Given, outcome{whole, nil}, outcome{nil, ErrNotMounted}, false, true, 1},
		"given, and part of it":      {takeover.Given, outcome{part, nil}, outcome{nil, ErrNotMounted}, true, true, 1},
		"given, and the disk is on":  {takeover.Given, outcome{nil, salvage.ErrDiskChanged}, outcome{nil, ErrNotMounted}, true, true, 0},
		"given, and the heir had it": {takeover.Given, outcome{whole, nil}, outcome{whole, nil}, true, true, 1},
		"fenced":                     {takeover.Fenced, outcome{whole, nil}, outcome{whole, nil}, false, true, 1},
		"handed over":                {takeover.HandedOver, outcome{whole, nil}, outcome{whole, nil}, true, true, 2},
		"broken off":                 {takeover.Fenced, outcome{part, broken}, outcome{nil, ErrNotMounted}, true, false, 1},
		"broken off, nothing to say": {takeover.Fenced, outcome{whole, broken}, outcome{nil, ErrNotMounted}, true, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			r := recovery{dir: &supervisor.RunDir{Path: t.TempDir()}}
			r.record = supervisor.Record{Pair: "p", Active: "left", Heir: "right", Disks: []supervisor.RecordDisk{{Name: "data", Image: image, Progress: tc.progress, Refused: new(true)}}}
			r.run = func(_ context.Context, o Options) (*Report, error) {
				if filepath.Base(o.Image) == "left.ram" {
					return tc.active.report, tc.active.err
				}
				return tc.heir.report, tc.heir.err
			}
			d := &r.record.Disks[0]
			if err := r.disk(t.Context(), d); (err == nil) != tc.ends || !tc.ends && !errors.Is(err, broken) {
				t.Errorf("%v", err)
			}
			if d.Lacks() != tc.refused || len(r.reports) != tc.reports {
				t.Errorf("refused: %v, %d reports", d.Lacks(), len(r.reports))
			}
		})
	}
}

// TestRecoverOld checks records of older programs, which do not say what their takeover had refused: the
// memory stays if that may have been something.
func TestRecoverOld(t *testing.T) {
	image := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		progress takeover.Progress
		heir     error
		kept     bool
	}{
		"no takeover":                {"", nil, false},
		"fenced":                     {takeover.Fenced, nil, false},
		"handed over":                {takeover.HandedOver, nil, false},
		"given, and the heir had it": {takeover.Given, nil, true},
		"given, and all of it":       {takeover.Given, ErrNotMounted, false},
		"applied":                    {takeover.Applied, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := recovery{dir: &supervisor.RunDir{Path: t.TempDir()}}
			r.record = supervisor.Record{Pair: "p", Active: "left", Heir: "right", Disks: []supervisor.RecordDisk{{Name: "data", Image: image, Progress: tc.progress}}}
			r.run = func(_ context.Context, o Options) (*Report, error) {
				if filepath.Base(o.Image) == "right.ram" && tc.heir != nil {
					return nil, tc.heir
				}
				return &Report{Complete: true}, nil
			}
			d := &r.record.Disks[0]
			if err := r.disk(t.Context(), d); err != nil || d.Lacks() != tc.kept {
				t.Errorf("%v, kept: %v", err, d.Lacks())
			}
		})
	}
}
