//go:build linux

// Command guest is PID 1 of the guests of package churn.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/churn"
	"understudy.dev/understudy/internal/lab/fixture/boot"
)

func main() {
	if err := run(); err != nil {
		fmt.Println("churn: failed:", err)
	}
	select {}
}

func run() error {
	if err := boot.SetUp(map[string]string{"kernel/sysrq": "1"}); err != nil {
		return err
	}
	b, err := os.ReadFile(churn.OrderPath)
	if err != nil {
		return err
	}
	var order churn.Order
	if err := json.Unmarshal(b, &order); err != nil {
		return err
	}
	device, err := boot.FindDisk(churn.Disk)
	if err != nil {
		return err
	}
	const root = "/mnt"
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(device, root, order.Type, 0, order.Options); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	unix.Umask(0)
	if err := prepare(root, order); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	unix.Sync()
	var all sync.WaitGroup
	for n := range order.Threads {
		w := newWorker(root, order, n)
		all.Go(func() { w.run(order.Ops) })
	}
	if order.Millis > 0 {
		time.Sleep(time.Duration(order.Millis) * time.Millisecond)
	} else {
		all.Wait()
		time.Sleep(100 * time.Millisecond)
	}
	return os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
}
