//go:build linux

// Command guest is PID 1 of the guests that make journals dirty, or replay them
// by mounting.
package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/dirtylog/order"
	"understudy.dev/understudy/internal/lab/fixture/boot"
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
		case err := <-failed: // which it never does otherwise
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
	for i, image := range images {
		if err := mountImage(i, disk, image); err != nil {
			return fmt.Errorf("image %d: %w", i, err)
		}
	}
	return disk.Sync()
}

func mountImage(i int, disk *os.File, image order.Image) error {
	// Opened each time: as long as it is open somewhere, it is detached only with
	// the last close.
	loop, err := os.OpenFile("/dev/loop0", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer loop.Close()
	if err := attach(loop, disk, image); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	answer := "mounted"
	if err := unix.Mount("/dev/loop0", "/tmp", image.Type, unix.MS_RDONLY, image.Options); err != nil {
		answer = err.Error()
	} else if err := unix.Unmount("/tmp", 0); err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	fmt.Printf("%s%d %s\n", order.Mounted, i, answer)
	if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	return nil
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
