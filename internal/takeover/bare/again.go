package bare

import (
	"context"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// BesideFile has the reservation of the understudy that another understudy has started after its own takeover.
const BesideFile = "/run/understudy/beside"

// stopLimit is how long the process that keeps that understudy may take to stop it.
const stopLimit = 30 * time.Second

// spare is how many of the dead kernel's CPUs are left for another understudy, if there is to be one: as many
// as this one had when this program was started, which is what runtime.NumCPU returns.
func (m *machine) spare() int {
	if m.self.Config.Again == nil {
		return 0
	}
	return min(runtime.NumCPU(), len(m.self.Config.Others))
}

// protect starts a process that keeps another understudy beside this kernel. When that process ends, nothing
// protects this kernel any more. The understudy's CPUs stay offline here: it may not have been stopped.
func (m *machine) protect(ctx context.Context) {
	ctx, m.unprotect = context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, "/init", "metal", "again")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = stopLimit
	m.protected = make(chan struct{})
	go func() {
		defer close(m.protected)
		if err := m.agent.Run(cmd); ctx.Err() == nil {
			say("not protected any more: the program that keeps the understudy has ended: %v", err)
			resetAtPanic(true)
		}
	}()
}

// stopProtecting ends what protect began, and returns when it has ended.
func (m *machine) stopProtecting() {
	if m.unprotect != nil {
		m.unprotect()
		<-m.protected
		resetAtPanic(true)
	}
}
