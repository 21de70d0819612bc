package demo

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/probe"
	"understudy.dev/understudy/internal/live/fence"
	"understudy.dev/understudy/internal/live/liveness"
)

// holdImage gives another process the dead side's own descriptor of the image, as if it
// had leaked: the lock on the image then outlives the partition, and nobody can prove
// that nothing writes to it any more.
func (p *play) holdImage() (release func(), err error) {
	pid := p.super.ActivePID()
	image := p.pair.Disks[0].Image
	number, err := descriptorOf(pid, image)
	if err != nil {
		return nil, err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, number, 0)
	if err != nil {
		return nil, fmt.Errorf("take descriptor %d of process %d: %w", number, pid, err)
	}
	leaked := os.NewFile(uintptr(fd), image)
	defer leaked.Close()
	cmd := exec.Command("sleep", "600")
	cmd.ExtraFiles = []*os.File{leaked}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
	}, nil
}

func descriptorOf(pid int, path string) (int, error) {
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return 0, err
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err == nil && target == path {
			return strconv.Atoi(filepath.Base(fd))
		}
	}
	return 0, fmt.Errorf("process %d does not have %s open", pid, path)
}

// takeOverUnfenced tries to take over while another process holds the disk. It must fail
// at the fence, with the disk as the dead side left it and the address unanswered.
func (p *play) takeOverUnfenced(ctx context.Context, v liveness.Verdict) error {
	image := p.pair.Disks[0].Image
	before, err := digestFile(image)
	if err != nil {
		return err
	}
	began := time.Now()
	_, failed := p.super.TakeOver(ctx, v)
	after, err := digestFile(image)
	if err != nil {
		return err
	}
	if !errors.Is(failed, fence.ErrLocked) {
		p.report.fail("the takeover did not fail at the fence, but so: %v", failed)
		return nil
	}
	p.report.FenceError = failed.Error()
	if before != after {
		p.report.fail("the disk was touched by a takeover that could not fence")
	}
	answers, _ := p.log.Answers()
	for _, a := range answers {
		if a.Class == probe.OK && a.Start.After(began) {
			p.report.fail("the address answered after a takeover that could not fence")
			break
		}
	}
	return nil
}

func digestFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}
