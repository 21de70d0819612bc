//go:build linux

// Command guest is PID 1 of a scene: it makes a working guest, and runs the scene's script.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/fixture/boot"
	"understudy.dev/understudy/internal/lab/scene/cue"
)

func main() {
	err := run()
	if err == nil {
		err = errors.New("the script ended")
	}
	fmt.Println(cue.Failed + err.Error())
	unix.Sync()
	time.Sleep(100 * time.Millisecond) // let the console say it
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run() error {
	if err := boot.SetUp(map[string]string{"kernel/sysrq": "1"}); err != nil {
		return err
	}
	// A shell that finds its applets by itself.
	cmd := exec.Command(cue.Busybox, "sh", "-eu", cue.Script)
	cmd.Env = []string{"PATH=/bin"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := exec.Command(cue.Busybox, "--install", "-s", "/bin").Run(); err != nil {
		return fmt.Errorf("install busybox: %w", err)
	}
	return cmd.Run()
}
