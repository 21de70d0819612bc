package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"understudy.dev/understudy/internal/lab/tier"
)

// event is a line of the output of go test -json (go doc test2json).
type event struct {
	Time    time.Time
	Action  string
	Package string
	Test    string
	Elapsed float64 // seconds
	Output  string
}

// slow is how long a passed test must have taken to be reported, in seconds.
const slow = 5

// report is what the tests printed and how they ended.
type report struct {
	out   io.Writer
	began time.Time

	passed, failed, skipped int
	output                  map[[2]string][]string // of each running test, by package and name
	failures                []string
	reasons                 map[string]int // of skips
	packages                map[string]int // the number of tests skipped, by package
	broken                  []string       // failures outside of tests
	record                  *record        // nil if none is kept
}

func newReport(out io.Writer, began time.Time) *report {
	return &report{out: out, began: began, output: make(map[[2]string][]string), reasons: make(map[string]int), packages: make(map[string]int)}
}

// good reports whether nothing failed, and something ran, if only in a run that this one continues.
func (r *report) good() bool {
	return r.failed == 0 && len(r.broken) == 0 && (r.passed > 0 || r.record != nil && len(r.record.before) > 0)
}

// say prints a line with the time since make began.
func (r *report) say(format string, args ...any) {
	fmt.Fprintf(r.out, "%4.0f s  "+format+"\n", append([]any{time.Since(r.began).Seconds()}, args...)...)
}

// read reads the output of one go test to its end.
func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil && e.Action != "" {
				r.take(e)
			} else {
				fmt.Fprintf(r.out, "%s", line)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (r *report) take(e event) {
	name := strings.TrimPrefix(e.Package, module)
	key := [2]string{name, e.Test}
	switch e.Action {
	case "start":
		r.say("%s", name)
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "output":
		r.output[key] = append(r.output[key], e.Output)
		if _, what, ok := strings.Cut(e.Output, tier.Progress); ok {
			r.say("    %s %s: %s", name, e.Test, strings.TrimSpace(what))
		}
	case "pass", "fail", "skip":
		if e.Test == "" {
			r.endPackage(name, e)
		} else {
			r.endTest(name, e)
		}
		delete(r.output, key)
	}
}

func (r *report) endTest(name string, e event) {
	output := r.output[[2]string{name, e.Test}]
	r.keep(ending{Time: e.Time, Action: e.Action, Package: name, Test: e.Test})
	switch e.Action {
	case "pass":
		r.passed++
		if e.Elapsed >= slow {
			r.say("    %s %s: passed in %.0f s", name, e.Test, e.Elapsed)
		}
	case "skip":
		r.skipped++
		r.packages[name]++
		r.reasons[reason(output)]++
	case "fail":
		r.failed++
		r.failures = append(r.failures, name+" "+e.Test)
		r.say("    %s %s: FAILED in %.0f s", name, e.Test, e.Elapsed)
		fmt.Fprint(r.out, strings.Join(output, ""))
	}
}

// endPackage reports how a package ended. One that failed without a failing test did not
// compile, or ended early: a panic, or the time limit.
func (r *report) endPackage(name string, e event) {
	left := ""
	if n := r.packages[name]; n > 0 {
		left = fmt.Sprintf(", %d skipped", n)
	}
	if e.Action != "fail" {
		r.keep(ending{Time: e.Time, Action: e.Action, Package: name})
		r.say("%s: passed in %.0f s%s", name, e.Elapsed, left)
		return
	}
	r.say("%s: FAILED in %.0f s%s", name, e.Elapsed, left)
	if slices.ContainsFunc(r.failures, func(f string) bool { return strings.HasPrefix(f, name+" ") }) {
		return
	}
	r.broken = append(r.broken, name)
	r.keep(ending{Time: e.Time, Action: e.Action, Package: name})
	for key, output := range r.output {
		if key[0] == name {
			fmt.Fprint(r.out, strings.Join(output, ""))
		}
	}
}

// keep puts an ending on record; failing to do so is as bad as a test that fails.
func (r *report) keep(e ending) {
	if err := r.record.add(e); err != nil {
		r.broken = append(r.broken, err.Error())
	}
}

// reason returns why a test was skipped: the last line of its output, except for go test's own.
func reason(output []string) string {
	for _, line := range slices.Backward(output) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "---") || strings.HasPrefix(line, "===") {
			continue
		}
		if at, why, ok := strings.Cut(line, ": "); ok && strings.Contains(at, ".go:") {
			return why
		}
		return line
	}
	return "it does not say why"
}

// end prints what was skipped and why, what failed, and how many tests there were.
func (r *report) end() {
	if r.skipped > 0 {
		fmt.Fprintln(r.out, "\nskipped:")
		for _, why := range slices.SortedFunc(maps.Keys(r.reasons), func(a, b string) int {
			return cmp.Or(r.reasons[b]-r.reasons[a], strings.Compare(a, b))
		}) {
			fmt.Fprintf(r.out, "%6d  %s\n", r.reasons[why], why)
		}
	}
	if !r.good() {
		fmt.Fprintln(r.out, "\nfailed:")
		for _, f := range slices.Concat(r.failures, r.broken) {
			fmt.Fprintln(r.out, "       ", f)
		}
	}
	fmt.Fprintf(r.out, "\nall of it took %v\n%d passed, %d failed, %d skipped\n", time.Since(r.began).Round(time.Second), r.passed, r.failed+len(r.broken), r.skipped)
}
