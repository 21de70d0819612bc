package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// tableHead begins docs/TESTED.md.
const tableHead = `# When all tests last ran

Made by ` + "`make test-full`" + `, which adds a row for each run that came to its end, whatever came of it: do not edit.
A run may be of several parts (` + "`make test-full RESUME=1`" + `): a test that has passed is not run again in the next, and
each commit is given with the number of tests that passed on it.

| date | commit | machine | time | passed | failed | skipped |
|---|---|---|---|---|---|---|
`

// addRow adds a row for the run on record, which has one or more parts, to the table, and begins the table
// if there is none.
func addRow(path, record string) error {
	all, err := readRecord(record)
	if err != nil {
		return fmt.Errorf("a table is made of a record (-record): %w", err)
	}
	s := total(all)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		b, err = []byte(tableHead), nil
	}
	if err != nil {
		return err
	}
	row := fmt.Sprintf("| %s | %s | %s | %s | %d | %s | %d |\n", time.Now().UTC().Format("2006-01-02"), strings.Join(s.commits, ", "), machine(),
		s.duration(), s.passed, s.failures(), s.skipped)
	tmp := path + ".new"
	if err := os.WriteFile(tmp, append(b, row...), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// duration returns the time that a run took, and in how many parts.
func (s sum) duration() string {
	d := s.time.Round(time.Second).String()
	if s.runs > 1 {
		return fmt.Sprintf("%s in %d parts", d, s.runs)
	}
	return d
}

// failures returns the number of tests that failed, and names those that failed before they passed.
func (s sum) failures() string {
	if len(s.failedFirst) == 0 {
		return fmt.Sprint(s.failed)
	}
	return fmt.Sprintf("%d; before they passed: %s", s.failed, strings.Join(s.failedFirst, ", "))
}

// commit names the commit that was tested; "+" stands for changes that were not committed.
func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty=+").Output()
	if err != nil {
		return "no git"
	}
	return strings.TrimSpace(string(out))
}

// machine returns how many CPUs this process can use, and their model.
func machine() string {
	b, _ := os.ReadFile("/proc/cpuinfo") // only Linux has it
	model := "unknown"
	if _, rest, ok := strings.Cut(string(b), "model name\t: "); ok {
		model, _, _ = strings.Cut(rest, "\n")
	}
	return fmt.Sprintf("%d × %s", runtime.NumCPU(), model)
}
