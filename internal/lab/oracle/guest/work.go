//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/fixture/boot"
	"understudy.dev/understudy/internal/lab/oracle/page"
	"understudy.dev/understudy/internal/lab/oracle/script"
)

// worker is one thread.
type worker struct {
	area   page.Area
	root   string
	script *script.Script
	slots  [script.Slots]int
	buf    []byte
	met    func() // waits at the barrier
	stop   *atomic.Bool
	full   *atomic.Int32 // threads that found no room; nil if that is a failure
}

func work(p page.Page, w *page.Work) error {
	if err := boot.Set(w.Sysctls); err != nil {
		return err
	}
	root := w.Root
	if root == "" {
		var err error
		if root, err = mount(w.Mount); err != nil {
			return err
		}
	} else if _, err := os.Stat(root); errors.Is(err, os.ErrNotExist) {
		return nil // a rehearsal
	}
	if w.Pieces {
		if err := pieces(w.Mount.Disk); err != nil {
			return err
		}
	}
	for i := range w.Threads {
		if err := os.Mkdir(threadRoot(root, i), 0o755); err != nil {
			return err
		}
	}
	if err := tellRoot(p, root); err != nil {
		return err
	}
	var stop atomic.Bool
	var full atomic.Int32
	var before, after, all sync.WaitGroup
	before.Add(w.Threads)
	after.Add(1)
	for i := range w.Threads {
		t := &worker{
			area: p.Area(i), root: threadRoot(root, i), script: script.New(w.Seed, i, w.Features, false), stop: &stop,
			met: func() { before.Done(); after.Wait() },
		}
		if w.Full {
			t.full = &full
		}
		all.Go(func() {
			runtime.LockOSThread()
			if err := t.run(); err != nil {
				p.Fail(fmt.Errorf("thread %d: %w; the kernel said:\n%s", i, err, kernelLog()))
				select {}
			}
		})
	}
	before.Wait()
	unix.Sync()
	if w.Drop {
		if err := boot.Set(map[string]string{"vm/drop_caches": "3"}); err != nil {
			return err
		}
	}
	if p.Load(page.State) == page.Failed {
		select {}
	}
	p.Store(page.State, page.Running)
	for p.Load(page.Go) == 0 {
		time.Sleep(time.Millisecond)
	}
	after.Done()
	return end(p, w, root, &stop, &full, &all)
}

func threadRoot(root string, i int) string { return fmt.Sprintf("%s/t%d", root, i) }

// tellRoot reports the mtime of the top directory, which does not change again.
func tellRoot(p page.Page, root string) error {
	var st unix.Stat_t
	if err := unix.Stat(root, &st); err != nil {
		return err
	}
	p.Store(page.RootSec, uint32(st.Mtim.Sec))
	p.Store(page.RootSecHigh, uint32(st.Mtim.Sec>>32))
	p.Store(page.RootNsec, uint32(st.Mtim.Nsec))
	return nil
}

// end brings the work to the end that was ordered.
func end(p page.Page, w *page.Work, root string, stop *atomic.Bool, full *atomic.Int32, all *sync.WaitGroup) error {
	if w.Grow > 0 {
		go grow(p, w, root)
	}
	time.Sleep(time.Duration(w.Millis) * time.Millisecond)
	for range 60_000 { // on a slow machine, a minute is enough
		if done(p) >= w.Ops || int(full.Load()) == w.Threads {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if w.Sync {
		d, err := os.Open(root)
		if err != nil {
			return err
		}
		go func() {
			p.Store(page.SyncBegun, 1)
			for range 20 { // one may be too quick
				_ = unix.Syncfs(int(d.Fd()))
			}
			p.Store(page.SyncEnded, 1)
		}()
		if err := midway(p, w); err != nil {
			return err
		}
	}
	p.Store(page.InCommit, 0)
	if committing() {
		p.Store(page.InCommit, 1)
	}
	switch {
	case w.Panic:
		p.Store(page.State, page.Crashing)
		return os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
	case w.Unmount:
		stop.Store(true)
		all.Wait()
		return unix.Unmount(root, 0)
	}
	p.Store(page.State, page.Crashing) // the host ends it
	select {}
}

// resize is EXT4_IOC_RESIZE_FS (fs/ext4/ext4.h), which takes the new number of blocks.
const resize = 0x40086610

// grow resizes the file system once GrowAt operations are done.
func grow(p page.Page, w *page.Work, root string) {
	for done(p) < w.GrowAt {
		time.Sleep(time.Millisecond)
	}
	d, err := os.Open(root)
	if err == nil {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), resize, uintptr(unsafe.Pointer(&w.Grow))); errno != 0 {
			err = errno
		}
	}
	if err != nil {
		p.Fail(fmt.Errorf("resize to %d blocks: %w; the kernel said:\n%s", w.Grow, err, kernelLog()))
	}
}

// done returns how many operations all threads have done.
func done(p page.Page) int {
	sum := 0
	for i := range page.Threads {
		_, n, _ := p.Area(i).Progress() // we wrote it
		sum += n
	}
	return sum
}

// run carries out the script until the kernel dies or all threads have to stop.
func (t *worker) run() error {
	for n := 0; n < page.MaxRecords && !t.stop.Load(); n++ {
		op := t.script.Next()
		t.area.Begin(n)
		if op.Kind == script.Barrier {
			t.met()
		} else if err := t.do(op); err != nil {
			if t.full != nil && errors.Is(err, unix.ENOSPC) && n > t.script.Base() {
				t.full.Add(1)
				return nil
			}
			return fmt.Errorf("%v: %w", op, err)
		}
		// The names to report on are those that exist after the operation.
		if err := t.script.Apply(op, nil); err != nil {
			return err
		}
		stats := make([]script.Stat, len(op.Touch))
		for i, ref := range op.Touch {
			var err error
			if stats[i], err = t.stat(ref); err != nil {
				return fmt.Errorf("report %v: %v: %w", op, ref, err)
			}
		}
		t.area.Report(n, stats)
	}
	for _, fd := range t.slots {
		if t.stop.Load() && fd > 0 {
			unix.Close(fd)
		}
	}
	return nil
}
