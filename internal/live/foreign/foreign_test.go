package foreign

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// program runs a shell as another process, under another name.
func program(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	sh, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(sh)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o755); err != nil {
		t.Fatal(err)
	}
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	cmd := exec.Command(path, append([]string{"-s"}, args...)...)
	cmd.Stdin = in
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		out.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	for { // Start returns in the middle of its execve(2)
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.HasPrefix(line, []byte(path+"\x00")) {
			return cmd
		}
		time.Sleep(time.Millisecond)
	}
}

func TestOpenRefuses(t *testing.T) {
	if _, err := Open(os.Getpid()); !errors.Is(err, errNotQEMU) {
		t.Errorf("a test is taken for QEMU: %v", err)
	}
	ours := program(t, "qemu-system-x86_64", "-name", "understudy-left,debug-threads=on")
	if m, err := Open(ours.Process.Pid); err == nil {
		t.Errorf("a partition of a pair was opened: %+v", m)
	}
}

// TestOpenByAnyName: QEMU is recognized by the names that distributions give it.
func TestOpenByAnyName(t *testing.T) {
	for _, name := range []string{"qemu-system-x86_64", "qemu-kvm", "kvm", ".qemu-system-x86_64-wrapped"} {
		m, err := Open(program(t, name, "-name", "guest=web").Process.Pid)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestFreeze stops a process, lets it go on, and ends it.
func TestFreeze(t *testing.T) {
	cmd := program(t, "qemu-system-x86_64", "-name", "guest=web")
	open := func() *Machine {
		m, err := Open(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := open()
	if m.Name != "web" {
		t.Errorf("its name is %q", m.Name)
	}
	if err := m.Freeze(); err != nil {
		t.Fatal(err)
	}
	if n, err := m.running(); n != 0 || err != nil {
		t.Errorf("%d threads run, %v", n, err)
	}
	// A process that was stopped before stays stopped.
	other := open()
	if err := errors.Join(other.Freeze(), other.Close()); err != nil {
		t.Fatal(err)
	}
	if n, err := m.running(); n != 0 || err != nil {
		t.Errorf("%d threads run after another was done with it, %v", n, err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m = open()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if n, err := m.running(); err == nil && n > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it does not go on")
		}
	}
	if err := errors.Join(m.Freeze(), m.End(10*time.Second), m.Close()); err != nil {
		t.Error(err)
	}
}
