// Survive runs the tests of what a pair survives, and writes their results as tables:
// each row of a table is a line of a test's log (row, in cmd/understudy's tests). Its
// exit status is 0 only if all of them passed.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// sections are the tables, in order, with the heads of their columns.
var sections = []struct{ name, heads, text string }{
	{"Faults", "kernel | fault | found by | after | refused",
		"Each fault hits the active side of one pair, one after the other, with `heartbeat: {cpu: 5s, scheduler: 5s, disk: 5s}` and `takeover: {degraded: takeover}`. " +
			"Before each, the service has written a file that is nowhere but in memory; at the end all of them are compared. *module* is internal/lab/fault, a kernel module of ours."},
	{"Not dead", "what | for | takeovers", "None of these may end in a takeover."},
	{"Killed", "who | when | what goes on | data",
		"What was in memory only is compared with what was written. *recorded as* is how far a takeover had come with the disk (docs/ARCHITECTURE.md)."},
	{"Takeovers in a row", "takeovers | by | protected again, median | longest | after the second | after the last",
		"Each leaves a file in memory, and all are compared at the end. The last two columns are what the pair uses: files and bytes in its run directory, descriptors and memory of its supervisor."},
	{"At rest", "who | of a CPU", "What a pair costs that has nothing to do, in a minute."},
}

// tests are the tests that are run: those whose logs have rows for the tables.
var tests = []string{
	"TestFaults", "TestCrashKernelLoaded", "TestReadOnly", "TestStoppedIsNotDead", "TestFrozenIsNotDead", "TestWaitsForMemoryIsNotDead", "TestSuspended", "TestNoRoomIsNoDeath",
	"TestBrokenOff", "TestRefusedAndBrokenOff", "TestDiskFails", "TestSupervisorKilled", "TestActiveDiesUnwatched", "TestFrozenUnwatched", "TestAllKilled", "TestHeirDies", "TestUnderstudyDies", "TestSecondDeath", "TestRootRescued", "TestRootRecovered",
	"TestSwitch", "TestProtectedAgain", "TestOvercommitted", "TestIdle",
}

// report is the result for programs to read.
type report struct {
	Date    string                `json:"date"`
	Machine string                `json:"machine"`
	Passed  []string              `json:"passed"`
	Failed  []string              `json:"failed"`
	Skipped []string              `json:"skipped"`
	Rows    map[string][][]string `json:"rows"` // by section
	Seconds int                   `json:"seconds"`
}

func main() {
	table := flag.String("table", "docs/RELIABILITY.md", "table to write")
	out := flag.String("json", "out/survive.json", "the same for programs")
	run := flag.String("run", "", "only these tests, as go test has it; nothing is written")
	flag.Parse()
	r, err := survive(*run)
	if err == nil && *run == "" {
		err = r.save(*table, *out)
	}
	if err == nil && len(r.Failed)+len(r.Skipped) > 0 {
		err = fmt.Errorf("failed: %s; left out: %s", strings.Join(r.Failed, ", "), strings.Join(r.Skipped, ", "))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "survive:", err)
		os.Exit(1)
	}
}

// survive runs the tests.
func survive(only string) (*report, error) {
	if only == "" {
		only = "^(" + strings.Join(tests, "|") + ")$"
	}
	r := &report{Date: time.Now().UTC().Format(time.DateOnly), Machine: machine(), Rows: make(map[string][][]string)}
	began := time.Now()
	cmd := exec.Command("go", "test", "-json", "-count", "1", "-timeout", "4h", "-run", only, "./cmd/understudy")
	cmd.Env = append(os.Environ(), "UNDERSTUDY_TIER=full")
	cmd.Stderr = os.Stderr
	events, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	r.read(events)
	_ = cmd.Wait() // r has what failed
	r.Seconds = int(time.Since(began).Seconds())
	if len(r.Passed)+len(r.Failed) == 0 {
		return nil, fmt.Errorf("no test ran: go test %s", only)
	}
	return r, nil
}

const mark = "survive: "

// saidLines is how many of the last lines of a failed test are printed.
const saidLines = 200

// read reads the output of go test (go doc test2json), and prints how tests end and their rows.
func (r *report) read(events io.Reader) {
	lines := bufio.NewScanner(events)
	lines.Buffer(nil, 1<<20)
	said := make(map[string][]string) // by test
	for lines.Scan() {
		var e struct{ Action, Test, Output string }
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil || e.Test == "" {
			continue
		}
		switch e.Action {
		case "pass":
			r.Passed = append(r.Passed, e.Test)
		case "fail":
			r.Failed = append(r.Failed, e.Test)
			fmt.Print(strings.Join(said[e.Test], ""))
		case "skip":
			r.Skipped = append(r.Skipped, e.Test)
		case "output":
			said[e.Test] = append(said[e.Test][max(0, len(said[e.Test])-saidLines):], e.Output)
			_, text, found := strings.Cut(e.Output, mark)
			var cells []string
			if found && json.Unmarshal([]byte(text), &cells) == nil && len(cells) > 1 {
				r.Rows[cells[0]] = append(r.Rows[cells[0]], cells[1:])
				fmt.Printf("    %s\n", strings.Join(cells, " | "))
			}
			continue
		default:
			continue
		}
		fmt.Printf("%s %s\n", e.Action, e.Test)
	}
}

// machine describes the machine that the tests ran on.
func machine() string {
	model := "an unknown CPU"
	b, _ := os.ReadFile("/proc/cpuinfo") // without it, the model stays unknown
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	version, _ := exec.Command("qemu-system-x86_64", "--version").Output()
	first, _, _ := strings.Cut(string(version), "\n")
	return fmt.Sprintf("%d CPUs, %s, %s", runtime.NumCPU(), model, first)
}

func (r *report) save(table, out string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(out, append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(table, []byte(r.text()), 0o644)
}

func (r *report) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# What a pair survives\n\nMade by `make survive` on %s, in %d minutes: do not edit. On %s.\n\n", r.Date, (r.Seconds+30)/60, r.Machine)
	fmt.Fprintf(&b, "%d tests passed, %d failed, %d were left out", len(r.Passed), len(r.Failed), len(r.Skipped))
	for _, l := range []struct {
		what  string
		names []string
	}{{"failed", r.Failed}, {"left out", r.Skipped}} {
		if len(l.names) > 0 {
			fmt.Fprintf(&b, "; %s: %s", l.what, strings.Join(l.names, ", "))
		}
	}
	b.WriteString(".\n")
	for _, s := range sections {
		heads := strings.Split(s.heads, " | ")
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n| %s |\n|%s\n", s.name, s.text, strings.Join(heads, " | "), strings.Repeat("---|", len(heads)))
		for _, cells := range r.Rows[s.name] {
			cells = slices.Clone(cells)
			for i := range cells {
				cells[i] = strings.ReplaceAll(cells[i], "|", "/")
			}
			fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | "))
		}
	}
	return b.String()
}
