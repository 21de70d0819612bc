package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// poll calls ok every few milliseconds, within a limit, until it returns true or
// an error. The devices of a guest appear some time after their driver.
func poll(ctx context.Context, limit time.Duration, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		done, err := ok()
		if done || err != nil {
			return err
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// openPort opens the virtio-serial port of that name.
func openPort(ctx context.Context, name string) (*port, error) {
	var path string
	err := poll(ctx, 10*time.Second, func() (bool, error) {
		names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return false, err
		}
		for _, n := range names {
			b, err := os.ReadFile(n)
			if err == nil && strings.TrimSpace(string(b)) == name {
				path = "/dev/" + filepath.Base(filepath.Dir(n))
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		return nil, fmt.Errorf("find virtio-serial port %s: %w", name, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open port %s: %w", name, err)
	}
	return &port{f}, nil
}

// port is a virtio-serial port. While nobody is connected at the host's end, read(2) returns
// no bytes and no error (drivers/char/virtio_console.c, port_fops_read), which is io.EOF
// here.
type port struct{ *os.File }

// awaitHost returns when somebody is connected at the host's end: until then poll(2) gives POLLHUP.
func (p *port) awaitHost(ctx context.Context) error {
	raw, err := p.SyscallConn() // Fd would make the file a blocking one
	if err != nil {
		return err
	}
	for {
		fds := []unix.PollFd{{Events: unix.POLLIN | unix.POLLOUT}}
		var polled error
		err := raw.Control(func(fd uintptr) {
			fds[0].Fd = int32(fd)
			_, polled = unix.Poll(fds, 0)
		})
		if err = errors.Join(err, polled); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for the supervisor: %w", err)
		}
		if fds[0].Revents != 0 && fds[0].Revents&unix.POLLHUP == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(10 * time.Millisecond):
		}
	}
}
