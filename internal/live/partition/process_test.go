package partition

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTrimConsole: the log of a guest that talks without end stays within bounds, and
// its end is kept.
func TestTrimConsole(t *testing.T) {
	p := &Process{Spec: Spec{Name: "left", Dir: t.TempDir()}}
	if err := p.TrimConsole(); err != nil {
		t.Errorf("no log: %v", err)
	}
	log := p.Spec.ConsoleLogPath()
	for _, size := range []int{consoleLimit, consoleLimit + 1} {
		said := bytes.Repeat([]byte("x"), size)
		copy(said[size-4:], "last")
		if err := os.WriteFile(log, said, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := p.TrimConsole(); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(log)
		if err != nil {
			t.Fatal(err)
		}
		old, err := os.ReadFile(filepath.Join(p.Spec.Dir, "left.console.old.log"))
		if trimmed := size > consoleLimit; trimmed != (st.Size() == 0) || trimmed != (err == nil) || trimmed && (len(old) != consoleKept || !bytes.HasSuffix(old, []byte("last"))) {
			t.Errorf("%d bytes: %d are left, %d kept, %v", size, st.Size(), len(old), err)
		}
	}
}

// TestReserve: memory that a file system cannot hold is refused when it is made, and not
// when it is touched.
func TestReserve(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if err := reserve(filepath.Join(dir, "fits"), 512<<10); err != nil {
		t.Error(err)
	}
	if err := reserve(filepath.Join(dir, "does not"), 768<<10); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("too much: %v", err)
	}
}

// TestFreeze: a frozen process does not run any more, and can be killed.
func TestFreeze(t *testing.T) {
	cmd := exec.Command("sh", "-c", "while :; do :; done")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &Process{pid: cmd.Process.Pid, signal: func(s unix.Signal) error { return cmd.Process.Signal(s) }}
	p.Freeze()
	stat := filepath.Join("/proc", strconv.Itoa(p.PID()), "stat")
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(stat)
		if err == nil && strings.Contains(string(b), ") T ") {
			break
		}
		if err != nil || time.Now().After(deadline) {
			t.Errorf("not frozen: %s, %v", b, err)
			break
		}
	}
	p.Kill()
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("ended with %v", err)
	}
}

// TestEffortOfItsCPUs: steal time of CPUs that a partition may not run on is not part of its effort.
func TestEffortOfItsCPUs(t *testing.T) {
	var ours unix.CPUSet
	if err := unix.SchedGetaffinity(0, &ours); err != nil {
		t.Fatal(err)
	}
	var all []int
	for cpu := range 1024 {
		if ours.IsSet(cpu) {
			all = append(all, cpu)
		}
	}
	cmd := exec.Command("sleep", "1h")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	p := &Process{Spec: Spec{CPUs: all[:1]}, pid: cmd.Process.Pid}
	check := func(want []int) {
		t.Helper()
		effort, err := p.Effort()
		var cpus []int
		for id := range effort {
			if id < 0 {
				cpus = append(cpus, -1-id)
			}
		}
		slices.Sort(cpus)
		if err != nil || !slices.Equal(cpus, want) {
			t.Errorf("CPUs %v, want %v; %v", cpus, want, err)
		}
	}
	if err := p.Withdraw(); err != nil {
		t.Fatal(err)
	}
	check(all[:1])
	if err := p.Spread(all[1:]); err != nil {
		t.Fatal(err)
	}
	check(all)
}

// TestCPUsUnknown: where the kernel does not say on which CPUs a process may run, each counts.
func TestCPUsUnknown(t *testing.T) {
	const nobody = 1<<30 - 1 // above what a process can have (PID_MAX_LIMIT)
	mayRun := cpusOf(nobody)
	for _, cpu := range []int{0, 63, 5000} {
		if !mayRun(cpu) {
			t.Errorf("CPU %d does not count", cpu)
		}
	}
}

func TestStolen(t *testing.T) {
	const stat = "cpu  5 0 5 900 1 0 0 40 0 0\ncpu0 5 0 5 900 1 0 0 7 0 0\ncpu11 1 2 3 4 5 6 7 33 0 0\ncpu2 1 2\nintr 5 6 7\ncpux 1 2 3 4 5 6 7 8 9\n"
	want := map[int]time.Duration{0: 70 * time.Millisecond, 11: 330 * time.Millisecond}
	if got := stolenIn(stat); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestReconnectStopped: a process that is stopped answers nothing, and that is reported at once.
func TestReconnectStopped(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	started, err := StartOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for stateOf(cmd.Process.Pid) != stateStopped {
		time.Sleep(time.Millisecond)
	}
	_, err = Reconnect(t.Context(), Spec{Name: "left", Dir: t.TempDir()}, Identity{cmd.Process.Pid, started})
	if !errors.Is(err, ErrStopped) || !strings.Contains(err.Error(), "kill -CONT") {
		t.Errorf("%v", err)
	}
}
