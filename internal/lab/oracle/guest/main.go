//go:build linux

// Command guest is PID 1 of the oracle's guests, or a service of a pair: it changes a
// tree until its kernel dies, and reports each operation before it begins the next; or it
// walks trees and reports what is in them.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/fixture/boot"
	"understudy.dev/understudy/internal/lab/oracle/page"
)

func main() {
	p, err := run()
	switch {
	case p == nil:
		fmt.Println("oracle: failed:", err)
	case err != nil:
		fmt.Println("oracle: failed:", err)
		p.Fail(err)
	default:
		p.Store(page.State, page.Ended)
	}
	if os.Getpid() == 1 || err != nil {
		select {}
	}
}

func run() (page.Page, error) {
	if os.Getpid() == 1 {
		if err := boot.SetUp(map[string]string{"kernel/sysrq": "1"}); err != nil {
			return nil, err
		}
	}
	p, err := shared()
	if err != nil {
		return nil, err
	}
	var order page.Order
	if err := p.Order(&order); err != nil {
		return p, err
	}
	debug.SetGCPercent(50)
	unix.Umask(0)
	switch {
	case order.Work != nil:
		err = work(p, order.Work)
	case order.Program != nil:
		err = program(p, order.Program)
	case order.Walk != nil:
		err = walk(p, order.Walk)
	case os.Getpid() == 1:
		err = errors.New("nothing was ordered")
	}
	return p, err
}

// shared maps the page: the memory behind BAR 2 of the ivshmem device that has page.Size
// bytes of it (QEMU, docs/specs/ivshmem-spec.txt).
func shared() (page.Page, error) {
	devices, err := filepath.Glob("/sys/bus/pci/devices/*/resource2")
	if err != nil {
		return nil, err
	}
	for _, path := range devices {
		info, err := os.Stat(path)
		if err != nil || info.Size() != page.Size {
			continue
		}
		if err := os.WriteFile(filepath.Dir(path)+"/enable", []byte("1"), 0); err != nil {
			return nil, fmt.Errorf("enable shared memory: %w", err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("open shared memory: %w", err)
		}
		defer f.Close()
		b, err := unix.Mmap(int(f.Fd()), 0, page.Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return nil, fmt.Errorf("map shared memory: %w", err)
		}
		return page.Of(b)
	}
	return nil, errors.New("no shared memory")
}

// mount mounts a disk and returns where.
func mount(m page.Mount) (string, error) {
	device, err := boot.FindDisk(m.Disk)
	if err != nil {
		return "", err
	}
	root := "/mnt/" + m.Disk
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", err
	}
	var flags uintptr
	if m.ReadOnly {
		flags = unix.MS_RDONLY
	}
	options := strings.Split(m.Options, ",")
	if at := slices.Index(options, "strictatime"); at >= 0 { // an option of mount(8), not of a file system
		options, flags = slices.Delete(options, at, at+1), flags|unix.MS_STRICTATIME
	}
	if err := unix.Mount(device, root, m.Type, flags, strings.Join(options, ",")); err != nil {
		return "", fmt.Errorf("mount %s of type %s with %q: %w; the kernel said:\n%s", m.Disk, m.Type, m.Options, err, kernelLog())
	}
	return root, nil
}

// kernelLog returns the last lines of the kernel's log.
func kernelLog() string {
	b := make([]byte, 1<<20)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, b)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(b[:n]), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-15):], []byte("\n")))
}
