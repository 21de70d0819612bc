package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/demo"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/dirs"
)

// binary is the program under test, as `make build` leaves it.
const binary = "../../bin/understudy"

// labBinary has the demo, and is the agent in guests of tests that need more verbs.
const labBinary = "../../bin/understudy-lab"

// needGuests checks that a test can boot guests.
func needGuests(t *testing.T) {
	t.Helper()
	tier.Guest(t)
	if os.Getuid() != 0 {
		tier.Lacks(t, "not root: pairs need namespaces and taps")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		tier.Lacks(t, fmt.Sprintf("%v: scripts/setup.sh installs it", err))
	}
	for _, program := range []string{binary, labBinary} {
		if _, err := os.Stat(program); err != nil {
			tier.Lacks(t, fmt.Sprintf("%v: make build lab makes it", err))
		}
	}
	if _, _, err := dirs.Kernel(""); err != nil {
		tier.Lacks(t, err)
	}
}

// vm prepares a test that brings up a pair, with its own run directory. It checks that this
// directory and the cache of runs are as before when the test ends.
func vm(t *testing.T) {
	t.Helper()
	needGuests(t)
	// t.TempDir has the name of the test in its path, which may be too long: the path of a
	// socket has room for 107 bytes (unix(7)).
	run, err := os.MkdirTemp("", "us-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	t.Setenv("UNDERSTUDY_RUN", run)
	t.Setenv("UNDERSTUDY_STATE", filepath.Join(t.TempDir(), "state"))
	links, before := hostLinks(t), leftovers(run)
	t.Cleanup(func() {
		if left := newLeftovers(run, before); len(left) > 0 {
			t.Errorf("left behind: %s", strings.Join(left, ", "))
		}
		if now := hostLinks(t); now != links {
			t.Errorf("the host's network changed from\n%s\nto\n%s", links, now)
		}
	})
}

// together prepares a test that boots guests, but no pair, and measures no time: it runs in
// parallel with others. What it leaves behind is found at the end of all tests (TestMain).
func together(t *testing.T) {
	t.Helper()
	t.Parallel()
	needGuests(t)
}

// leftovers lists files and processes that a run should have removed.
func leftovers(run string) []string {
	cache, err := dirs.Cache()
	if err != nil {
		return []string{err.Error()}
	}
	left, _ := filepath.Glob(filepath.Join(run, "*")) // the pattern is well-formed
	runs, _ := filepath.Glob(filepath.Join(cache, "runs", "*"))
	left = append(left, slices.DeleteFunc(runs, livesOn)...)
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range processes {
		if line, err := os.ReadFile(p); err == nil && bytes.Contains(line, []byte(run)) {
			left = append(left, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return left
}

// newLeftovers returns the leftovers that are not in before.
func newLeftovers(run string, before []string) []string {
	return slices.DeleteFunc(leftovers(run), func(l string) bool { return slices.Contains(before, l) })
}

// livesOn reports whether a directory of netlab.WorkDir belongs to a process that lives, which is another run's.
func livesOn(dir string) bool {
	parts := strings.Split(filepath.Base(dir), "-")
	if len(parts) < 3 {
		return false
	}
	_, err := os.Stat(filepath.Join("/proc", parts[len(parts)-2]))
	return err == nil
}

func hostLinks(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("ip", "-o", "link").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// await waits until ok reports true.
func await(t *testing.T, what string, limit time.Duration, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %s within %v", what, limit)
		}
	}
}

// programLimit is how long a program that boots guests may run on a busy machine.
const programLimit = 15 * time.Minute

// understudy runs the program to its end.
func understudy(t *testing.T, args ...string) (stdout string, err error) {
	t.Helper()
	return runProgram(t, binary, args...)
}

func runProgram(t *testing.T, binary string, args ...string) (stdout string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), programLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	t.Logf("%s %s\n%s%s", filepath.Base(binary), strings.Join(args, " "), errOut.String(), out.String())
	if err != nil {
		err = fmt.Errorf("%w: %s", err, errOut.String())
	}
	return out.String(), err
}

func runDemo(t *testing.T, args ...string) demo.Report {
	t.Helper()
	out, err := runProgram(t, labBinary, append([]string{"demo", "--json"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	var r demo.Report
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestDemo(t *testing.T) {
	for _, fs := range []string{"ext4", "ext3"} {
		t.Run(fs, func(t *testing.T) {
			tier.Full(t, "the demo on "+fs)
			vm(t)
			r := runDemo(t, "--fs", fs)
			if r.BytesWrong != 0 || r.FilesMissing != 0 || r.FilesCompared < 200 || r.Refused != 0 {
				t.Errorf("%d bytes wrong, %d files missing of %d, %d refused", r.BytesWrong, r.FilesMissing, r.FilesCompared, r.Refused)
			}
			if r.BytesRecovered < 96<<20 || r.Files < 200 {
				t.Errorf("recovered %d bytes of %d files", r.BytesRecovered, r.Files)
			}
			if c := r.WithoutSalvage; c == nil || c.BytesWrong < 96<<20 || c.SyncedWrong != 0 {
				t.Errorf("without salvage: %+v", c)
			}
			if r.OutageMS == nil || *r.OutageMS <= 0 {
				t.Errorf("no outage measured: %v", r.OutageMS)
			}
			if !ofPanic(r.Verdict) {
				t.Errorf("verdict %q", r.Verdict)
			}
		})
	}
}

// ofPanic reports whether a verdict is that of a panic: by the dying message, or by the kernel's
// memory, which is looked at every period and may show it first on a busy machine.
func ofPanic(verdict string) bool {
	return strings.HasPrefix(verdict, "dying message") || strings.HasPrefix(verdict, "panic state")
}

// TestDemoKernels tests takeovers from and by kernels other than the default one, and
// kernels that have ext4 as a module, or only the older panic device.
func TestDemoKernels(t *testing.T) {
	for _, name := range []string{"5.10-generic", "6.12-cloud", "newest-generic"} {
		t.Run(name, func(t *testing.T) {
			vm(t)
			r := runDemo(t, "--contrast=false", "--kernel", fixture.NeedKernel(t, name))
			if r.BytesWrong != 0 || r.FilesMissing != 0 || r.FilesCompared < 200 || r.Refused != 0 || r.BytesRecovered < 96<<20 {
				t.Errorf("%d bytes wrong, %d files missing of %d, %d refused, %d bytes recovered",
					r.BytesWrong, r.FilesMissing, r.FilesCompared, r.Refused, r.BytesRecovered)
			}
			if !ofPanic(r.Verdict) {
				t.Errorf("verdict %q", r.Verdict)
			}
		})
	}
}

func TestDemoWithoutSalvage(t *testing.T) {
	tier.Full(t, "the demo without salvage")
	vm(t)
	r := runDemo(t, "--no-salvage")
	if r.SyncedWrong != 0 || r.WithoutSalvage.SyncedWrong != 0 {
		t.Errorf("fsynced files lost: %d, %d", r.SyncedWrong, r.WithoutSalvage.SyncedWrong)
	}
	if r.BytesRecovered != 0 || r.BytesWrong < 96<<20 {
		t.Errorf("recovered %d bytes without salvage, %d wrong", r.BytesRecovered, r.BytesWrong)
	}
}

func TestDemoHang(t *testing.T) {
	tier.Full(t, "the demo with a hang")
	vm(t)
	r := runDemo(t, "--hang", "--contrast=false")
	if r.BytesWrong != 0 || r.FilesMissing != 0 {
		t.Errorf("%d bytes wrong, %d files missing", r.BytesWrong, r.FilesMissing)
	}
	if !strings.HasPrefix(r.Verdict, "heartbeat") {
		t.Errorf("verdict %q", r.Verdict)
	}
}

func TestDemoCannotFence(t *testing.T) {
	tier.Full(t, "the demo without a fence")
	vm(t)
	r := runDemo(t, "--cannot-fence")
	if !strings.Contains(r.FenceError, "sleep") || len(r.Steps) != 0 {
		t.Errorf("fence error %q, steps %v", r.FenceError, r.Steps)
	}
}

// startDemo starts the demo, and waits until it prints said.
func startDemo(t *testing.T, said string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(labBinary, "demo")
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has ended, if all went well
		if t.Failed() {
			t.Logf("the demo said: %s", out.String())
		}
	})
	await(t, "demo that says "+said, programLimit, func() bool { return strings.Contains(out.String(), said) })
	return cmd
}

// guests returns how many guests of the test run.
func guests(t *testing.T) (n int) {
	t.Helper()
	for _, l := range leftovers(os.Getenv("UNDERSTUDY_RUN")) {
		if strings.Contains(l, "qemu") {
			n++
		}
	}
	return n
}

// TestInterrupted interrupts the demo at different points, as Ctrl-C would.
func TestInterrupted(t *testing.T) {
	tier.Full(t, "the demo interrupted")
	for _, said := range []string{"boot the pair", "the guest makes", "its kernel panics"} {
		t.Run(said, func(t *testing.T) {
			vm(t)
			cmd := startDemo(t, said)
			await(t, "guest", programLimit, func() bool { return guests(t) > 0 })
			if err := cmd.Process.Signal(unix.SIGINT); err != nil {
				t.Fatal(err)
			}
			var exit *exec.ExitError
			if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
				t.Errorf("interrupted demo ended with %v", err)
			}
		})
	}
}

// TestKilled kills the supervisor itself: its guests must end with it. The files stay,
// since the memory among them may hold the last copy of something.
func TestKilled(t *testing.T) {
	vm(t)
	cmd := startDemo(t, "boot the pair")
	await(t, "two guests", programLimit, func() bool { return guests(t) >= 2 })
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	await(t, "end of the guests that outlived their supervisor", programLimit, func() bool { return guests(t) == 0 })
	for _, l := range leftovers(os.Getenv("UNDERSTUDY_RUN")) {
		if err := os.RemoveAll(l); err != nil {
			t.Fatal(err)
		}
	}
}
