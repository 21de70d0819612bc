//go:build linux

// Command guest is PID 1 of the guests that make journals dirty, or replay them
// by mounting.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy/internal/dirtylog/order"
)

func main() {
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
	if err := setUp(); err != nil {
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
	for i, fs := range o.Work {
		device, err := findDisk(fs.Serial)
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
		go func() { failed <- w.work() }()
	}
	fmt.Println(order.Working)
	return <-failed // which it never does otherwise
}

// setUp makes a working guest of a bare kernel.
func setUp() error {
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}} {
		if err := os.MkdirAll(m[1], 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m[0], m[1], m[0], 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m[1], err)
		}
	}
	list, err := os.ReadFile("/lib/modules/order")
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(list)) {
		f, err := os.Open("/lib/modules/" + name)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		// ENODEV: it drives hardware that is not there.
		if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("load %s: %w", name, err)
		}
	}
	return nil
}

// findDisk returns the device of a serial number, which may take a moment to
// appear.
func findDisk(serial string) (string, error) {
	for range 500 {
		found, err := filepath.Glob("/sys/block/vd*/serial")
		if err != nil {
			return "", err
		}
		for _, path := range found {
			b, err := os.ReadFile(path)
			if err == nil && strings.TrimSpace(string(b)) == serial {
				return "/dev/" + filepath.Base(filepath.Dir(path)), nil
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return "", fmt.Errorf("no disk with serial number %s", serial)
}

// mountImages mounts one image after the other, read-only, which replays its
// journal, and says how each went.
func mountImages(images []order.Image) error {
	device, err := findDisk(order.Disk)
	if err != nil {
		return err
	}
	disk, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer disk.Close()
	loop, err := os.OpenFile("/dev/loop0", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer loop.Close()
	for i, image := range images {
		if err := attach(loop, disk, image); err != nil {
			return fmt.Errorf("attach image %d: %w", i, err)
		}
		err := unix.Mount("/dev/loop0", "/tmp", image.Type, unix.MS_RDONLY, image.Options)
		if err == nil {
			if err := unix.Unmount("/tmp", 0); err != nil {
				return fmt.Errorf("unmount image %d: %w", i, err)
			}
			fmt.Printf("%s%d mounted\n", order.Mounted, i)
		} else {
			fmt.Printf("%s%d %v\n", order.Mounted, i, err)
		}
		if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
			return fmt.Errorf("detach image %d: %w", i, err)
		}
	}
	return disk.Sync()
}

// attach makes the loop device an image. It may still be about to let the one
// before go.
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
