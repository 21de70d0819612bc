package main

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// again is the output of go test when those tests of said that had not passed run once more.
const again = `{"Action":"pass","Package":"understudy.dev/understudy/dead/ram","Test":"TestC/x","Elapsed":1}
{"Action":"pass","Package":"understudy.dev/understudy/dead/ram","Test":"TestC","Elapsed":1}
{"Action":"pass","Package":"understudy.dev/understudy/dead/ram"}
{"Action":"fail","Package":"understudy.dev/understudy/dead/addr","Test":"TestD"}
{"Action":"fail","Package":"understudy.dev/understudy/dead/addr"}
`

func TestRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out", "record")
	run := func(what string) *record {
		t.Helper()
		r := newReport(io.Discard, time.Now())
		var err error
		if r.record, err = openRecord(path, true, r.began); err != nil {
			t.Fatal(err)
		}
		if err := r.read(strings.NewReader(what)); err != nil {
			t.Fatal(err)
		}
		return r.record
	}
	if r := run(said); r.ended() != nil || r.skip("dead/ram") != "" {
		t.Errorf("before the first run %q have ended, and %s is skipped", r.ended(), r.skip("dead/ram"))
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"Action":"pass","Pack` + "\n"); err != nil { // broken off
		t.Fatal(err)
	}
	if r := run(again); r.ended() != nil || r.skip("dead/ram") != "^(TestA)$" || r.skip("dead/addr") != "" {
		t.Errorf("after the first run %q have ended, and %s is skipped", r.ended(), r.skip("dead/ram"))
	}
	if r := run(""); !slices.Equal(r.ended(), []string{"dead/ram"}) || r.skip("dead/ram") != "^(TestA|TestC)$" {
		t.Errorf("after the second run %q have ended, and %s is skipped", r.ended(), r.skip("dead/ram"))
	}
	all, err := readRecord(path)
	if err != nil {
		t.Fatal(err)
	}
	s := total(all)
	if s.passed != 3 || s.skipped != 1 || s.failures() != "2; before they passed: dead/ram TestC" || s.runs != 3 || len(s.commits) != 1 {
		t.Errorf("in all: %+v", s)
	}
}

func TestTotalOfTwoCommits(t *testing.T) {
	at := time.Unix(0, 0)
	s := total([]ending{
		{Commit: "a", Time: at, Action: "run"},
		{Commit: "a", Time: at.Add(time.Minute), Action: "pass", Package: "p", Test: "T"},
		{Commit: "a", Time: at.Add(2 * time.Minute), Action: "pass", Package: "p", Test: "U"},
		{Commit: "b", Time: at.Add(time.Hour), Action: "run"},
		{Commit: "b", Time: at.Add(time.Hour + time.Minute), Action: "pass", Package: "p", Test: "V"},
	})
	if s.duration() != "3m0s in 2 parts" || !slices.Equal(s.commits, []string{"a (2)", "b (1)"}) {
		t.Errorf("%s on %q", s.duration(), s.commits)
	}
}

// TestTotalOfGoneSubtest checks that a subtest that failed counts no more once its test has passed without it.
func TestTotalOfGoneSubtest(t *testing.T) {
	all := []ending{
		{Action: "run"},
		{Action: "fail", Package: "p", Test: "T/old"},
		{Action: "pass", Package: "p", Test: "T/both"},
		{Action: "fail", Package: "p", Test: "T"},
		{Action: "run"},
		{Action: "pass", Package: "p", Test: "T/both"},
		{Action: "pass", Package: "p", Test: "T"},
	}
	if s := total(all); s.passed != 2 || s.failed != 0 || !slices.Equal(s.failedFirst, []string{"p T"}) {
		t.Errorf("%+v", s)
	}
	again := append(all, ending{Action: "run"}, ending{Action: "fail", Package: "p", Test: "T/old"}, ending{Action: "fail", Package: "p", Test: "T"})
	if s := total(again); s.passed != 1 || s.failed != 2 {
		t.Errorf("again: %+v", s)
	}
}
