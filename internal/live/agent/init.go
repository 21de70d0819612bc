package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// kernelMounts are the file systems that PID 1 mounts to make a working guest.
var kernelMounts = []struct{ source, target, kind string }{
	{"proc", "/proc", "proc"},
	{"sysfs", "/sys", "sysfs"},
	{"devtmpfs", "/dev", "devtmpfs"},
	{"tmpfs", "/run", "tmpfs"},
	{"tmpfs", "/tmp", "tmpfs"},
}

// Hides reports whether the guest mounts one of its own file systems over what its image has at
// an absolute path.
func Hides(path string) bool {
	return slices.ContainsFunc(kernelMounts, func(m struct{ source, target, kind string }) bool {
		return path == m.target || strings.HasPrefix(path, m.target+"/")
	})
}

// serveAsInit makes a working guest of a bare kernel and serves its supervisor. It
// returns only to end the guest.
func serveAsInit(ctx context.Context, extra map[string]Verb) error {
	if err := MountKernel(); err != nil {
		return err
	}
	a, err := Boot(extra)
	if err != nil {
		return err
	}
	go a.serveConsole()
	if err := a.standAlone(ctx); err != nil {
		return err
	}
	return a.Serve(ctx)
}

// MountKernel mounts the file systems through which programs see the kernel, and /run and
// /tmp. PID 1 calls it first. It mounts them only once.
func MountKernel() error { return mountKernel() }

var mountKernel = sync.OnceValue(func() error {
	for _, m := range kernelMounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", m.target, err)
		}
		if err := unix.Mount(m.source, m.target, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
})

// Boot makes a working system of the kernel that this process is PID 1 of, after
// MountKernel, and returns its agent, which does not serve a supervisor yet.
func Boot(extra map[string]Verb) (*Agent, error) {
	if err := os.Setenv("PATH", "/sbin:/bin:/usr/sbin:/usr/bin"); err != nil {
		return nil, err
	}
	if err := loadModules("/lib/modules/order"); err != nil {
		return nil, err
	}
	if err := setUpLoopback(); err != nil {
		return nil, err
	}
	a := New(extra)
	go a.children.Reap()
	return a, nil
}

// loadModules loads the modules of the guest image, in the order it gives.
func loadModules(order string) error {
	list, err := os.ReadFile(order)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read module list: %w", err)
	}
	for path := range strings.FieldsSeq(string(list)) {
		if !strings.HasPrefix(path, "/") {
			path = "/lib/modules/" + path
		}
		if err := loadModule(path); err != nil {
			return err
		}
	}
	return nil
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open module: %w", err)
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load module %s: %w", path, err)
	}
	return nil
}

// Main runs as PID 1 of a small guest, with extra verbs. If it cannot go on, it writes the
// reason to the console and powers the guest off.
func Main(ctx context.Context, extra map[string]Verb) {
	err := serveAsInit(ctx, extra)
	fmt.Fprintln(os.Stderr, "understudy: init:", err)
	time.Sleep(100 * time.Millisecond) // let the console say it
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}
