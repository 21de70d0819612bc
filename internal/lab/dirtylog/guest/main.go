//go:build linux

// Command guest is PID 1 of the guests that make journals dirty, or replay them
// by mounting.
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/dirtylog/order"
	"understudy.dev/understudy/internal/lab/fixture/boot"
)

func main() {
	fmt.Println(order.Begun)
	if err := run(); err != nil {
		fmt.Println(order.Failed + err.Error())
	} else {
		fmt.Println(order.Done)
	}
	unix.Sync()
	time.Sleep(100 * time.Millisecond)
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

func run() error {
	if err := boot.SetUp(nil); err != nil {
		return err
	}
	raw, err := os.ReadFile(order.Path)
	if err != nil {
		return err
	}
	var o order.Order
	if err := json.Unmarshal(raw, &o); err != nil {
		return err
	}
	if len(o.Images) > 0 {
		return mountImages(o.Images)
	}
	failed := make(chan error)
	var workers []*worker
	for i, fs := range o.Work {
		device, err := boot.FindDisk(fs.Serial)
		if err != nil {
			return err
		}
		root := "/mnt/" + fs.Serial
		if err := os.MkdirAll(root, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(device, root, fs.Type, 0, fs.Options); err != nil {
			return fmt.Errorf("mount %s: %w", fs.Serial, err)
		}
		w := &worker{root: root, fsyncs: fs.Fsyncs, random: rand.New(rand.NewPCG(o.Seed, uint64(i)))}
		workers = append(workers, w)
	}
	for _, w := range workers {
		go func() { failed <- w.work() }()
	}
	for said := int64(0); ; {
		select {
		case err := <-failed: // a worker returns only if something fails
			return err
		case <-time.After(time.Millisecond):
		}
		least := slices.MinFunc(workers, func(a, b *worker) int { return cmp.Compare(a.steps.Load(), b.steps.Load()) }).steps.Load()
		for ; said+order.StepsEvery <= least; said += order.StepsEvery {
			fmt.Printf("%s%d\n", order.Steps, said+order.StepsEvery)
		}
	}
}

// mountImages mounts one image after the other, read-only, which replays its
// journal, and says how each went.
func mountImages(images []order.Image) error {
	device, err := boot.FindDisk(order.Disk)
	if err != nil {
		return err
	}
	disk, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer disk.Close()
	messages, err := newMessages()
	if err != nil {
		return err
	}
	for i, image := range images {
		answer, err := mountImage(disk, image)
		if err != nil {
			return fmt.Errorf("image %d: %w", i, err)
		}
		if err := messages.print(); err != nil {
			return fmt.Errorf("image %d: %w", i, err)
		}
		fmt.Printf("%s%d %s\n", order.Mounted, i, answer)
	}
	return disk.Sync()
}

// messages are the kernel's messages. It does not print them on the console itself, since
// it may do so later, and in the middle of one of our lines, above all with PREEMPT_RT.
type messages struct{ fd int }

func newMessages() (*messages, error) {
	const consoleLevel = 8 // SYSLOG_ACTION_CONSOLE_LEVEL, include/linux/syslog.h; a panic is printed all the same
	if _, _, errno := unix.Syscall(unix.SYS_SYSLOG, consoleLevel, 0, 1); errno != 0 {
		return nil, fmt.Errorf("set console level: %w", errno)
	}
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/kmsg: %w", err)
	}
	m := &messages{fd}
	return m, m.each(func(string) {})
}

// print prints the messages since the last call.
func (m *messages) print() error { return m.each(func(s string) { fmt.Println(s) }) }

// each reads the messages that are pending: one record per read, whose text follows a semicolon
// (Documentation/ABI/testing/dev-kmsg).
func (m *messages) each(do func(string)) error {
	b := make([]byte, 8192)
	for {
		n, err := unix.Read(m.fd, b)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.EPIPE): // some were overwritten
		case err != nil:
			return fmt.Errorf("read /dev/kmsg: %w", err)
		default:
			_, text, _ := strings.Cut(string(b[:n]), ";")
			text, _, _ = strings.Cut(text, "\n")
			do(text)
		}
	}
}

// mountImage mounts and unmounts an image, and returns how that went.
func mountImage(disk *os.File, image order.Image) (answer string, err error) {
	// The loop device is opened each time, because it is detached only with its last
	// close.
	loop, err := os.OpenFile("/dev/loop0", os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer loop.Close()
	if err := attach(loop, disk, image); err != nil {
		return "", fmt.Errorf("attach: %w", err)
	}
	answer = "mounted"
	if err := unix.Mount("/dev/loop0", "/tmp", image.Type, unix.MS_RDONLY, image.Options); err != nil {
		answer = err.Error()
	} else if err := unix.Unmount("/tmp", 0); err != nil {
		return "", fmt.Errorf("unmount: %w", err)
	}
	if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
		return "", fmt.Errorf("detach: %w", err)
	}
	return answer, nil
}

// attach attaches an image to the loop device, which may still be detaching the one
// before.
func attach(loop, disk *os.File, image order.Image) error {
	err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_FD, int(disk.Fd()))
	for tries := 0; err == unix.EBUSY && tries < 1000; tries++ {
		time.Sleep(5 * time.Millisecond)
		err = unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_FD, int(disk.Fd()))
	}
	if err != nil {
		return err
	}
	return unix.IoctlLoopSetStatus64(int(loop.Fd()), &unix.LoopInfo64{Offset: image.Offset, Sizelimit: image.Size})
}
