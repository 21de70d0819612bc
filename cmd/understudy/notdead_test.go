package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/tier"
)

// notDead is the section of what must not be taken for a death.
const notDead = "Not dead"

// TestFrozenIsNotDead freezes the cgroup of the active side's QEMU for a while.
func TestFrozenIsNotDead(t *testing.T) {
	tier.Full(t, "a cgroup that is frozen")
	s := stand(t)
	s.up()
	g := newGroup(t, freezing)
	g.write("cgroup.procs", fmt.Sprint(s.qemuPID("left")))
	g.hold()
	await(t, "held", programLimit, func() bool { return s.status().Held != "" })
	const frozen = 15 * time.Second // longer than QEMU itself may fail to answer
	time.Sleep(frozen)
	if err := g.lift(); err != nil {
		t.Fatal(err)
	}
	await(t, "going on", programLimit, func() bool { return s.status().Held == "" })
	if st := pairStatus(t); st.State != "protected" || st.Takeovers != 0 {
		t.Errorf("status %+v", st)
	}
	row(t, notDead, "a frozen cgroup", frozen, pairStatus(t).Takeovers)
	if _, err := understudy(t, "down"); err != nil {
		t.Error(err)
	}
}

// TestWaitsForMemoryIsNotDead checks that the active side is not dead if the host has no memory for
// it, so that its virtual CPUs wait in the host's kernel (state D), as they do for a page of swap.
func TestWaitsForMemoryIsNotDead(t *testing.T) {
	tier.Full(t, "virtual CPUs that wait in the host's kernel")
	t.Setenv("TMPDIR", "/dev/shm") // the host has no disk behind it that it could write the memory to
	s := stand(t, marker, marker+"heartbeat: {cpu: 5s, scheduler: 5s, disk: 5s}\n")
	s.up()
	g := newGroup(t, limiting)
	g.hold()
	pid := s.qemuPID("left")
	g.write("cgroup.procs", fmt.Sprint(pid))
	s.shell("left", "(sleep 1; while :; do for a in sha512sum awk gzip xz bc sort diff vi tar unzip md5sum sed; do head -c 9999 /bin/busybox | $a; done; done) > /dev/null 2>&1 &")
	const waits = 10 * time.Second // longer than any of the limits
	end := time.Now().Add(programLimit)
	for waited := time.Duration(0); waited < waits; time.Sleep(100 * time.Millisecond) {
		if waiting(t, pid) {
			waited += 100 * time.Millisecond
		}
		if st := s.status(); st.Takeovers > 0 {
			t.Fatalf("taken over from: %+v", st)
		}
		if time.Now().After(end) {
			t.Fatalf("threads have waited for memory for %v only", waited)
		}
	}
	if err := g.lift(); err != nil {
		t.Fatal(err)
	}
	await(t, "going on", programLimit, func() bool { return s.status().Held == "" })
	time.Sleep(10 * time.Second)
	st := pairStatus(t)
	if st.State != "protected" || st.Takeovers != 0 {
		t.Errorf("status %+v", st)
	}
	row(t, notDead, "virtual CPUs that wait in the host's kernel for memory (state D)", waits, st.Takeovers)
	if _, err := understudy(t, "down"); err != nil {
		t.Error(err)
	}
}

// waiting reports whether a thread of a process waits in the kernel (proc(5), stat: state D).
func waiting(t *testing.T, pid int) bool {
	t.Helper()
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid)) // the pattern is well-formed
	return slices.ContainsFunc(tasks, func(path string) bool {
		stat, err := os.ReadFile(path)
		return err == nil && strings.HasPrefix(string(stat[bytes.LastIndexByte(stat, ')')+1:]), " D")
	})
}

// restraint is what keeps the processes of a control group from running: what to write to which
// of its files, and what to write to the last of these files to let the processes continue.
type restraint struct {
	on  [][2]string
	off string
}

// little is how much more memory a process may get, in bytes.
const little = "131072"

// The restraints by the directory that has the control groups of each kind.
var (
	freezing = map[string]restraint{
		"/sys/fs/cgroup": {[][2]string{{"cgroup.freeze", "1"}}, "0"}, "/sys/fs/cgroup/unified": {[][2]string{{"cgroup.freeze", "1"}}, "0"},
		"/sys/fs/cgroup/freezer": {[][2]string{{"freezer.state", "FROZEN"}}, "THAWED"},
	}
	// Processes that need more memory wait.
	limiting = map[string]restraint{
		"/sys/fs/cgroup":        {[][2]string{{"memory.high", little}}, "max"},
		"/sys/fs/cgroup/memory": {[][2]string{{"memory.oom_control", "1"}, {"memory.limit_in_bytes", little}}, "-1"},
	}
)

// group is a control group for a test.
type group struct {
	t   *testing.T
	dir string
	restraint
}

// newGroup makes a control group of the kind that this machine has.
func newGroup(t *testing.T, kinds map[string]restraint) *group {
	t.Helper()
	for parent, r := range kinds {
		if _, err := os.Stat(filepath.Join(parent, "cgroup.procs")); err != nil {
			continue
		}
		_ = os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+memory"), 0o644) // version 1 has none
		g := &group{t, filepath.Join(parent, fmt.Sprintf("understudy-test-%d", os.Getpid())), r}
		if err := os.Mkdir(g.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(g.dir) }) // once it is empty
		if _, err := os.Stat(g.last()); err == nil {
			return g
		}
	}
	tier.Lacks(t, "no control group for that")
	return nil
}

// last returns the path of the file that lets the processes continue.
func (g *group) last() string { return filepath.Join(g.dir, g.on[len(g.on)-1][0]) }

func (g *group) write(file, text string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, file), []byte(text), 0o644); err != nil {
		g.t.Fatal(err)
	}
}

// hold keeps the processes of the group from running until lift, or until the end of the test: nobody
// could end them otherwise.
func (g *group) hold() {
	g.t.Helper()
	for _, on := range g.on {
		g.write(on[0], on[1])
	}
	g.t.Cleanup(func() { _ = g.lift() })
}

func (g *group) lift() error { return os.WriteFile(g.last(), []byte(g.off), 0o644) }

// TestSuspended stops the whole machine, as a suspend does: everything of the pair stops,
// and continues later, with clocks that have gone on.
func TestSuspended(t *testing.T) {
	tier.Full(t, "a machine that was suspended")
	s := stand(t)
	s.up()
	pids := []int{s.supervisorPID(), s.qemuPID("left"), s.qemuPID("right")}
	const suspended = 30 * time.Second
	for _, sig := range []unix.Signal{unix.SIGSTOP, unix.SIGCONT} {
		for _, pid := range pids {
			if err := unix.Kill(pid, sig); err != nil {
				t.Fatal(err)
			}
		}
		if sig == unix.SIGSTOP {
			time.Sleep(suspended)
		}
	}
	time.Sleep(10 * time.Second)
	if st := pairStatus(t); st.State != "protected" || st.Takeovers != 0 {
		t.Errorf("status %+v", st)
	}
	row(t, notDead, "supervisor and guests all stopped, as in a suspend", suspended, pairStatus(t).Takeovers)
	if _, err := understudy(t, "down"); err != nil {
		t.Error(err)
	}
}

// overcommitted is for how long a machine has four times as much to do as it can.
const overcommitted = 30 * time.Minute

// TestOvercommitted checks that a busy machine, and busy guests, are not taken for dead.
func TestOvercommitted(t *testing.T) {
	tier.Full(t, "half an hour of a busy machine")
	s := stand(t, marker, again)
	s.up()
	s.wrote("left", 1)
	s.shell("left", "(while :; do dd if=/dev/zero of=/srv/busy bs=64k count=100; rm /srv/busy; done) > /dev/null 2>&1 &")
	for range 4 * runtime.NumCPU() {
		cmd := exec.Command("sh", "-c", "while :; do :; done")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}()
	}
	for end := time.Now().Add(overcommitted); time.Now().Before(end); time.Sleep(10 * time.Second) {
		if st := s.status(); st.Takeovers != 0 || st.State != "protected" || len(st.Troubles) > 0 {
			t.Fatalf("status %+v", st)
		}
	}
	st := s.status()
	row(t, notDead, fmt.Sprintf("4 busy loops for each CPU, and writers in the guest (its beat paused for %v at the longest)", st.Pause.Round(time.Millisecond)), overcommitted, st.Takeovers)
	// The watcher must still see a real death.
	if _, err := understudy(t, "crash", "--hang"); err != nil {
		t.Fatal(err)
	}
	st = awaitTakeover(t)
	row(t, "Faults", st.Kernel, "hang, on a machine with 4 busy loops for each CPU", st.Takeover.Verdict, found(st.Takeover, "", time.Time{}), len(st.Takeover.Refused))
	s.wrote("right", 2)
	if _, err := understudy(t, "down"); err != nil {
		t.Error(err)
	}
	s.sound()
	s.exact(2)
}
