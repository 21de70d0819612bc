package scene

import (
	"os/exec"
	"syscall"
)

// dieTogether makes a process end with the thread that starts it.
func dieTogether(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
