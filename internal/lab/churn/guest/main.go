//go:build linux

// Command guest is PID 1 of the guests of package churn.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/churn"
	"understudy.dev/understudy/internal/lab/fixture/boot"
	"understudy.dev/understudy/internal/lab/hold"
)

func main() {
	switch err := run(); {
	case errors.Is(err, errNotHeld):
		fmt.Println(churn.NotHeld + err.Error())
	case err != nil:
		fmt.Println(churn.Failed + err.Error())
	}
	for {
		time.Sleep(time.Hour)
	}
}

func run() error {
	sysctls := maps.Clone(hold.Dirty)
	sysctls["kernel/sysrq"] = "1"
	if err := boot.SetUp(sysctls); err != nil {
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
	options := hold.Ext4
	if order.Options != "" {
		options += "," + order.Options
	}
	if err := unix.Mount(device, root, order.Type, 0, options); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	unix.Umask(0)
	if err := prepare(root, order); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	unix.Sync()
	before, err := committed()
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	var done atomic.Int64
	for n := range order.Threads {
		w := newWorker(root, order, n)
		all.Go(func() { w.run(order.Ops, &done) })
	}
	if order.After > 0 {
		for done.Load() < int64(order.After) {
			time.Sleep(time.Millisecond)
		}
	} else {
		all.Wait()
		if err := settle(root); err != nil {
			return err
		}
		now, err := committed()
		if err != nil {
			return err
		}
		// With data=journal, zeroing a range commits the running transaction (ext4_zero_range).
		if now != before && !strings.Contains(order.Options, "data=journal") {
			return fmt.Errorf("%w: the journal committed meanwhile: %s after %s", errNotHeld, now, before)
		}
	}
	return os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
}

// errNotHeld means that the running transaction does not have all that was ordered.
var errNotHeld = errors.New("not what was ordered")

// committed returns the kernel's line that tells how many transactions the journal has
// committed (fs/jbd2/journal.c, jbd2_seq_info_show).
func committed() (string, error) {
	found, err := filepath.Glob("/proc/fs/jbd2/*/info")
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("find the journal: %q, %w", found, err)
	}
	b, err := os.ReadFile(found[0])
	line, _, _ := strings.Cut(string(b), " (")
	return line, err
}

// settle waits for the writeback that workers started. When it ends, the kernel changes
// metadata in the transaction.
func settle(root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.SyncFileRange(int(f.Fd()), 0, 0, unix.SYNC_FILE_RANGE_WAIT_BEFORE)
	})
}
