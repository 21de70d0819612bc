package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// record is a file of how each test ended, one line of JSON per test. It lets a run that was
// interrupted, or in which something failed, be continued: what has passed is not run again.
type record struct {
	file   *os.File
	commit string
	before []ending // of the runs that this one continues
}

// ending is how a test ended or, where Test is empty, how a package ended that passed, or that
// failed without a failing test. Each run begins with an ending whose Action is "run".
type ending struct {
	Commit  string
	Time    time.Time
	Action  string // run, pass, fail or skip
	Package string `json:",omitempty"`
	Test    string `json:",omitempty"`
}

// openRecord begins a record, or continues the existing one.
func openRecord(path string, resume bool, began time.Time) (*record, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	r := &record{commit: commit()}
	if resume {
		var err error
		if r.before, err = readRecord(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if !resume {
		flags |= os.O_TRUNC
	}
	var err error
	if r.file, err = os.OpenFile(path, flags, 0o644); err != nil {
		return nil, err
	}
	return r, r.add(ending{Time: began, Action: "run"})
}

// readRecord reads a record. Its last line may be incomplete, if the run was interrupted.
func readRecord(path string) ([]ending, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []ending
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var e ending
		if json.Unmarshal(lines.Bytes(), &e) == nil {
			all = append(all, e)
		}
	}
	return all, lines.Err()
}

// add writes a line with this run's commit. It does nothing if there is no record.
func (r *record) add(e ending) error {
	if r == nil {
		return nil
	}
	e.Commit = r.commit
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = r.file.Write(append(b, '\n'))
	return err
}

// ended returns the packages that have passed as a whole.
func (r *record) ended() []string {
	if r == nil {
		return nil
	}
	var names []string
	for _, e := range r.before {
		if e.Package != "" && e.Test == "" && e.Action != "fail" {
			names = append(names, e.Package)
		}
	}
	return names
}

// skip returns the pattern (go help testflag, -skip) of a package's tests that have passed; subtests are skipped
// with their test.
func (r *record) skip(name string) string {
	if r == nil {
		return ""
	}
	var tests []string
	for _, e := range r.before {
		if e.Package != name || e.Test == "" || strings.Contains(e.Test, "/") {
			continue
		}
		tests = slices.DeleteFunc(tests, func(t string) bool { return t == e.Test })
		if e.Action == "pass" {
			tests = append(tests, e.Test)
		}
	}
	if len(tests) == 0 {
		return ""
	}
	for i, t := range tests {
		tests[i] = regexp.QuoteMeta(t)
	}
	return "^(" + strings.Join(tests, "|") + ")$"
}

// sum is the total over all runs of a record.
type sum struct {
	passed, failed, skipped int
	failedFirst             []string // failed, but passed when they ran again
	time                    time.Duration
	runs                    int
	commits                 []string // with the number of tests that passed on each, if there are several
}

// total adds up a record. For a test that ran again its last ending counts, and failedFirst names it if it
// failed before.
func total(all []ending) sum {
	var s sum
	last, in := make(map[string]ending), make(map[string]int) // in is the run
	var order, failed, commits []string
	var began time.Time
	for _, e := range all {
		if e.Action == "run" {
			s.runs++
			began = e.Time
			continue
		}
		if span := e.Time.Sub(began); span > 0 {
			s.time += span
			began = e.Time
		}
		name := strings.TrimSpace(e.Package + " " + e.Test)
		if _, ok := in[name]; !ok {
			order = append(order, name)
		}
		last[name], in[name] = e, s.runs
		if e.Action == "pass" && e.Test != "" && !strings.Contains(e.Test, "/") {
			maps.DeleteFunc(last, func(other string, _ ending) bool {
				return in[other] < s.runs && strings.HasPrefix(other, name+"/") // the test has no such subtest any more
			})
		}
		if e.Action == "fail" && !slices.Contains(failed, name) {
			failed = append(failed, name)
		}
	}
	on := make(map[string]int)
	for _, name := range order {
		e := last[name]
		switch {
		case e.Action == "": // deleted
		case e.Action == "fail":
			s.failed++
		case e.Test == "": // a package
		case e.Action == "skip":
			s.skipped++
		default:
			s.passed++
			if on[e.Commit]++; on[e.Commit] == 1 {
				commits = append(commits, e.Commit)
			}
		}
	}
	for _, name := range failed {
		if last[name].Action == "pass" {
			s.failedFirst = append(s.failedFirst, name)
		}
	}
	for _, c := range commits {
		if len(commits) > 1 {
			c = fmt.Sprintf("%s (%d)", c, on[c])
		}
		s.commits = append(s.commits, c)
	}
	return s
}
