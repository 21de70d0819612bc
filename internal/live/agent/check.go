package agent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"syscall"

	"understudy.dev/understudy/internal/live/hint"
	"understudy.dev/understudy/internal/live/wire"
)

// checked are the file system types that wire.Checker checks.
var checked = []string{"ext2", "ext3", "ext4"}

// check checks a file system in full and repairs it, as e2fsck(8) does with -f
// and -y. A file system that it could not repair is an error, and must not be mounted.
func (a *Agent) check(ctx context.Context, d wire.Disk) (*wire.Check, error) {
	if !slices.Contains(checked, d.Type) {
		return nil, fmt.Errorf("check disk %s: %s is not of the ext family", d.Name, d.Type)
	}
	if err := haveChecker(); err != nil {
		return nil, fmt.Errorf("check disk %s: %w", d.Name, err)
	}
	if err := a.prepareDevice(ctx, d); err != nil {
		return nil, err
	}
	path, err := devicePath(d)
	if err != nil {
		return nil, err
	}
	if err := flushBuffers(path); err != nil {
		return nil, err
	}
	var said bytes.Buffer
	cmd := checker(ctx, path)
	cmd.Stdout, cmd.Stderr = &said, &said
	ended := a.children.Run(cmd)
	found, err := wire.Checked(said.Bytes(), ended)
	if err != nil {
		return nil, fmt.Errorf("check disk %s: %w", d.Name, err)
	}
	return found, nil
}

// checker is the command that runs e2fsck(8) on a device, in English: a guest with its own system may have another
// language, and the output is parsed.
func checker(ctx context.Context, path string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, wire.Checker, "-f", "-y", path)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// haveChecker checks that this guest has the program that checks file systems.
func haveChecker() error {
	if _, err := exec.LookPath(wire.Checker); err != nil {
		return hint.New("find checker", err, "Add e2fsck to the guest's image: package e2fsprogs has it.")
	}
	return nil
}
