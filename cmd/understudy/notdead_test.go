package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/tier"
)

// notDead is the section of what must not be taken for a death.
const notDead = "Not dead"

// TestFrozenIsNotDead: the cgroup of the active side's QEMU is frozen for a while.
func TestFrozenIsNotDead(t *testing.T) {
	tier.Full(t, "a cgroup that is frozen")
	s := stand(t)
	s.up()
	group, freeze := freezer(t)
	write := func(file, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(group, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("cgroup.procs", fmt.Sprint(s.qemuPID("left")))
	write(freeze.file, freeze.on)
	t.Cleanup(func() { _ = os.WriteFile(filepath.Join(group, freeze.file), []byte(freeze.off), 0o644) }) // or else nobody can end it
	await(t, "held", programLimit, func() bool { return s.status().Held != "" })
	const frozen = 15 * time.Second // longer than QEMU itself may be silent
	time.Sleep(frozen)
	write(freeze.file, freeze.off)
	await(t, "going on", programLimit, func() bool { return s.status().Held == "" })
	if st := pairStatus(t); st.State != "protected" || st.Takeovers != 0 {
		t.Errorf("status %+v", st)
	}
	row(t, notDead, "a frozen cgroup", frozen, pairStatus(t).Takeovers)
	if _, err := understudy(t, "down"); err != nil {
		t.Error(err)
	}
}

// freezing is how a control group of a kind is frozen.
type freezing struct{ file, on, off string }

// freezer makes a control group of the kind that this machine has, for the test.
func freezer(t *testing.T) (dir string, f freezing) {
	t.Helper()
	name := fmt.Sprintf("understudy-test-%d", os.Getpid())
	for parent, f := range map[string]freezing{
		"/sys/fs/cgroup": {"cgroup.freeze", "1", "0"}, "/sys/fs/cgroup/unified": {"cgroup.freeze", "1", "0"},
		"/sys/fs/cgroup/freezer": {"freezer.state", "FROZEN", "THAWED"},
	} {
		if _, err := os.Stat(filepath.Join(parent, "cgroup.procs")); err != nil {
			continue
		}
		dir := filepath.Join(parent, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Remove(dir) }) // once it is empty
		return dir, f
	}
	tier.Lacks(t, "no control group to freeze")
	return "", f
}

// TestSuspended: the machine itself stands still, as in a suspend: everything of the pair
// stops, and goes on later, with clocks that have gone on.
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

// TestOvercommitted: a busy machine, and busy guests, are no death.
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
	// It must not be blind, either.
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
