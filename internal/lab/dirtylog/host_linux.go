package dirtylog

import (
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// dieTogether makes the guest end with the thread that started it, at the latest.
func dieTogether(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }

// freeze stops all threads of QEMU, so that nothing changes its disks.
func (g *guest) freeze(t testing.TB) {
	t.Helper()
	if err := g.cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for {
		var st unix.Siginfo
		// WNOWAIT leaves the state for others to see.
		err := unix.Waitid(unix.P_PID, g.cmd.Process.Pid, &st, unix.WSTOPPED|unix.WNOWAIT, nil)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			t.Fatal(err)
		}
	}
}

// thaw lets QEMU continue.
func (g *guest) thaw(t testing.TB) {
	t.Helper()
	if err := g.cmd.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
}
