package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"syscall"

	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/wire"
)

// checked are the types that wire.Checker is for.
var checked = []string{"ext2", "ext3", "ext4"}

// maxChecked bounds what of a check's output is kept, in bytes: its end.
const maxChecked = 64 << 10

// check checks a file system in full and repairs it, as e2fsck(8) does with -f
// and -y. One that could not be repaired is an error, and must not be mounted.
func (a *Agent) check(ctx context.Context, d wire.Disk) (*wire.Check, error) {
	if !slices.Contains(checked, d.Type) {
		return nil, fmt.Errorf("check disk %s: %s is not of the ext family", d.Name, d.Type)
	}
	if err := haveChecker(); err != nil {
		return nil, fmt.Errorf("check disk %s: %w", d.Name, err)
	}
	path, err := diskPath(d.Name)
	if err != nil {
		return nil, err
	}
	if err := flushBuffers(path); err != nil {
		return nil, err
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, wire.Checker, "-f", "-y", path)
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err = a.children.start(cmd); err == nil {
		err = a.children.wait(cmd)
	}
	out := said.Bytes()
	found := &wire.Check{Output: string(out[max(0, len(out)-maxChecked):])}
	found.Read(out)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		found.Status = exit.ExitCode()
	} else if err != nil {
		return nil, fmt.Errorf("check disk %s: %w", d.Name, err)
	}
	// The status is a sum (e2fsck(8)): 1 for errors that were corrected, 2 for
	// the advice to reboot, which is about a file system that is mounted.
	if found.Status&^3 != 0 {
		return nil, fmt.Errorf("check disk %s: e2fsck ended with status %d: %s", d.Name, found.Status, found.Output)
	}
	return found, nil
}

// haveChecker checks that this guest has the program that checks file systems.
func haveChecker() error {
	if _, err := exec.LookPath(wire.Checker); err != nil {
		return hint.New("find checker", err, "Add e2fsck to the guest's image: package e2fsprogs has it.")
	}
	return nil
}
