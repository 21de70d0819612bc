package main

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/offline"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// TestLeftBehind checks that the exit status of recover, and of leave, says whether something is in
// memory only.
func TestLeftBehind(t *testing.T) {
	disk := []supervisor.RecordDisk{{Name: "data"}}
	whole, part := &offline.Report{Complete: true}, &offline.Report{Refused: []takeover.Refusal{{Reason: "torn"}}}
	for name, tc := range map[string]struct {
		record  *supervisor.Record
		reports []*offline.Report
		left    bool // the guests have ended and left something
		code    int  // exit status of recover for what is left; 0 if there is nothing more to report
	}{
		"nothing":                   {},
		"saved":                     {record: &supervisor.Record{Disks: disk, Saved: true}, reports: []*offline.Report{whole}},
		"kept":                      {record: &supervisor.Record{Disks: disk, Saved: true, Kept: []supervisor.KeptMemory{{File: "f", Why: "w"}}}, left: true, code: 1},
		"refused now":               {record: &supervisor.Record{Disks: disk}, reports: []*offline.Report{whole, part}, left: true},
		"refused before":            {record: &supervisor.Record{Disks: disk}, left: true, code: exitRefused},
		"refused before, of others": {record: &supervisor.Record{Disks: disk}, reports: []*offline.Report{whole}, left: true, code: exitRefused},
	} {
		t.Run(name, func(t *testing.T) {
			d := &supervisor.RunDir{Path: t.TempDir(), Record: tc.record}
			var unsaved *supervisor.Unsaved
			if err := leftBehind(d); errors.As(err, &unsaved) != tc.left {
				t.Errorf("left: %v", err)
			}
			err := recovered(d, "web", tc.reports)
			if (err != nil) != (tc.code != 0) || err != nil && exitCode(err) != tc.code {
				t.Errorf("recovered: %v", err)
			}
		})
	}
}

// TestSwitchAlarm checks that a switch after which not all of the service works ends with a status that says so.
func TestSwitchAlarm(t *testing.T) {
	for name, tc := range map[string]struct {
		report takeover.Report
		want   int
	}{
		"all of it":     {takeover.Report{}, 0},
		"a service":     {takeover.Report{Unready: []wire.Unready{{Service: "web", Reason: "no answer"}}}, exitUnprotected},
		"not reachable": {takeover.Report{Unreached: "no bridge"}, exitUnprotected},
	} {
		got := 0
		if err := (&lastTakeover{Report: tc.report}).alarm(); err != nil {
			got = exitCode(err)
		}
		if got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}

// TestTakeoverText: what was not brought over is named, and the rest of it counted.
func TestTakeoverText(t *testing.T) {
	last := lastTakeover{Verdict: "panic"}
	last.MoreRefused = 3
	for n := range maxNamed + 2 {
		last.Refused = append(last.Refused, takeover.Refusal{Disk: "data", Path: fmt.Sprintf("db/%d\x1b", n), Reason: "torn"})
	}
	var b strings.Builder
	if err := last.write(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"15 refused", `refused: disk data: "db/9\x1b": torn`, "and 5 more refusals"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %s in:\n%s", want, &b)
		}
	}
	if strings.Contains(b.String(), "db/10") {
		t.Errorf("more than %d are named:\n%s", maxNamed, &b)
	}
}
