package agent

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// consoleDevice is the first serial port, which is the partition's console.
const consoleDevice = "/dev/ttyS0"

// serveConsole keeps a shell on the console, if the guest has one.
func (a *Agent) serveConsole() {
	const shell = "/bin/sh"
	if _, err := os.Stat(shell); err != nil {
		return
	}
	for {
		if err := a.runShell(shell); err != nil {
			fmt.Fprintln(os.Stderr, "understudy: shell on the console:", err)
		}
		time.Sleep(time.Second)
	}
}

func (a *Agent) runShell(shell string) error {
	tty, err := os.OpenFile(consoleDevice, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer tty.Close()
	cmd := exec.Command(shell)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = tty, tty, tty
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	if err := a.children.Start(cmd); err != nil {
		return err
	}
	_ = a.children.Wait(cmd) // how it ended is its user's business
	return nil
}
