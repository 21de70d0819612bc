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

Made by ` + "`make test-full`" + `, which adds a row for each run, whatever came of it: do not edit.

| date | commit | machine | time | passed | failed | skipped |
|---|---|---|---|---|---|---|
`

// addRow adds a run to the table, which it begins if there is none.
func addRow(path string, r *report) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		b, err = []byte(tableHead), nil
	}
	if err != nil {
		return err
	}
	row := fmt.Sprintf("| %s | %s | %s | %v | %d | %d | %d |\n", time.Now().UTC().Format("2006-01-02"), commit(), machine(),
		time.Since(r.began).Round(time.Second), r.passed, r.failed+len(r.broken), r.skipped)
	tmp := path + ".new"
	if err := os.WriteFile(tmp, append(b, row...), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// commit names what was tested; "+" stands for changes that were not committed.
func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty=+").Output()
	if err != nil {
		return "no git"
	}
	return strings.TrimSpace(string(out))
}

// machine says how many CPUs there are for us, and which.
func machine() string {
	b, _ := os.ReadFile("/proc/cpuinfo") // Linux alone has it
	model := "unknown"
	if _, rest, ok := strings.Cut(string(b), "model name\t: "); ok {
		model, _, _ = strings.Cut(rest, "\n")
	}
	return fmt.Sprintf("%d × %s", runtime.NumCPU(), model)
}
