// Runtests runs the tests of a tier (package tier), and reports meanwhile what they do:
// which package runs, which crash image it makes, what failed.
//
//	runtests [-tier quick|test|full] [-timeout 10m] [-began SECONDS] [-record FILE [-resume] [-table FILE]] [PACKAGE...]
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

const module = "understudy.dev/understudy/"

// alone are the packages that boot pairs and check their timing, or inspect the host's
// own network: none of them runs beside another package.
var alone = []string{"cmd/understudy", "internal/lab/systems"}

// first are the packages that take longest to get ready, in the order in which they
// begin: no two neighbours make the same images.
var first = []string{"internal/lab/fixture", "dead/audit", "internal/lab/oracle", "dead/jbd2"}

func main() {
	tier := flag.String("tier", "test", "quick, test or full")
	timeout := flag.Duration("timeout", 10*time.Minute, "for the tests of one package")
	began := flag.Int64("began", time.Now().Unix(), "when make began, in seconds since 1970: times are told from then on")
	path := flag.String("record", "", "a file that keeps how each test ended, a line of JSON for each")
	resume := flag.Bool("resume", false, "continue the record: what has passed is not run again")
	table := flag.String("table", "", "a Markdown file whose table gets a row with what is on record")
	flag.Parse()
	r := newReport(os.Stdout, time.Unix(*began, 0))
	if *path != "" {
		var err error
		if r.record, err = openRecord(*path, *resume, r.began); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if err := run(r, *tier, *timeout, flag.Args()); err != nil {
		r.broken = append(r.broken, err.Error())
	}
	r.end()
	if *table != "" {
		if err := addRow(*table, *path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if !r.good() {
		os.Exit(1)
	}
}

// run runs the packages, two or more at a time where that is allowed.
func run(r *report, tier string, timeout time.Duration, patterns []string) error {
	if err := os.Setenv("UNDERSTUDY_TIER", tier); err != nil {
		return err
	}
	if len(patterns) == 0 {
		patterns = []string{"./..."}
	}
	packages, err := list(patterns)
	if err != nil {
		return err
	}
	ended := r.record.ended()
	packages = slices.DeleteFunc(packages, func(p string) bool { return slices.Contains(ended, p) })
	together, one := divide(packages)
	if tier == "quick" {
		together, one = packages, nil
	}
	// A package some of whose tests are skipped runs alone, because -skip applies to all packages of a go test.
	partly := func(p string) bool { return r.record.skip(p) != "" }
	one = append(slices.DeleteFunc(slices.Clone(together), func(p string) bool { return !partly(p) }), one...)
	together = slices.DeleteFunc(together, partly)
	err = test(r, together, runtime.NumCPU(), timeout, "")
	for _, p := range one {
		err = errors.Join(err, test(r, []string{p}, 1, timeout, r.record.skip(p)))
	}
	return err
}

// list returns the packages that have tests, without the name of the module.
func list(patterns []string) ([]string, error) {
	args := append([]string{"list", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}"}, patterns...)
	out, err := exec.Command("go", args...).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil, fmt.Errorf("go list: %s", exit.Stderr)
	}
	if err != nil {
		return nil, err
	}
	var packages []string
	for _, p := range strings.Fields(string(out)) {
		packages = append(packages, strings.TrimPrefix(p, module))
	}
	return packages, nil
}

// divide separates the packages that may run beside each other, in the order in which
// they are to begin, from those that may not.
func divide(packages []string) (together, one []string) {
	for _, p := range packages {
		if slices.Contains(alone, p) {
			one = append(one, p)
		} else {
			together = append(together, p)
		}
	}
	rank := func(p string) int {
		if i := slices.Index(first, p); i >= 0 {
			return i
		}
		return len(first)
	}
	slices.SortStableFunc(together, func(a, b string) int { return rank(a) - rank(b) })
	return together, one
}

// test runs packages, atOnce at a time, never from the test cache: they run bin/understudy. go
// vet is left to make check. skip is a pattern of tests that are not run.
func test(r *report, packages []string, atOnce int, timeout time.Duration, skip string) error {
	if len(packages) == 0 {
		return nil
	}
	args := []string{"test", "-json", "-count", "1", "-vet", "off", "-p", fmt.Sprint(atOnce), "-timeout", timeout.String()}
	if skip != "" {
		args = append(args, "-skip", skip)
	}
	for _, p := range packages {
		if !strings.HasPrefix(p, strings.TrimSuffix(module, "/")) { // not the root of the module itself
			p = module + p
		}
		args = append(args, p)
	}
	cmd := exec.Command("go", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := r.read(out)
	_, _ = io.Copy(io.Discard, out) // so that it can end
	err = cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 && !r.good() {
		err = nil // the report says so
	}
	return errors.Join(readErr, err)
}
