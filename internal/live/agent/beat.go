package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/wire"
)

// ivshmem's PCI identity (QEMU, docs/specs/ivshmem-spec.txt).
const ivshmemVendor, ivshmemDevice = "0x1af4", "0x1110"

// counters are the words of the beat page, which is mapped for the life of the process.
type counters []byte

// at is the counter at an offset, a multiple of 8.
func (c counters) at(offset int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&c[offset]))
}

// beat starts counting on the beat page: from a thread of real-time priority that nothing
// but a dead kernel can hold back for long, from such a thread on each CPU, and from an
// ordinary one.
func (a *Agent) beat(b wire.Beat) error {
	page, err := beatPage()
	if err != nil {
		return err
	}
	binary.LittleEndian.PutUint64(page, liveness.PageMagic)
	a.counters = counters(page)
	if err := a.counters.realTime(liveness.CounterOffset, -1, b.Period); err != nil {
		return err
	}
	if b.CPU > 0 {
		for cpu, p := range liveness.CPUPulses(runtime.NumCPU()) {
			if err := a.counters.realTime(p.Offset, cpu, b.CPU/liveness.PulsesPerLimit); err != nil {
				return err
			}
		}
	}
	if b.Scheduler > 0 {
		go a.counters.ordinary(liveness.SchedulerPulse().Offset, b.Scheduler/liveness.PulsesPerLimit)
	}
	return nil
}

// realTime starts a real-time thread that counts every period, on one CPU if that is not
// negative.
func (c counters) realTime(offset, cpu int, period time.Duration) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := realTime(beatPriority)
		if err == nil && cpu >= 0 {
			err = keepOn(cpu)
		}
		started <- err
		if err != nil {
			return
		}
		for {
			c.at(offset).Add(1)
			sleep(period)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("make beat thread real-time: %w", err)
	}
	return nil
}

// Priorities of real-time threads.
const (
	beatPriority    = 50
	highestPriority = 99
)

// realTime gives this thread a priority in the real-time class, SCHED_FIFO, which is 1
// (include/uapi/linux/sched.h).
func realTime(priority uint32) error {
	return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: 1, Priority: priority}, 0)
}

// keepOn has this thread run on one CPU only.
func keepOn(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	return unix.SchedSetaffinity(0, &set)
}

// ordinary counts every period for as long as there is memory to be had.
func (c counters) ordinary(offset int, period time.Duration) {
	runtime.LockOSThread()
	for {
		page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
		if err == nil {
			err = unix.Munmap(page)
		}
		if err == nil {
			c.at(offset).Add(1)
		}
		sleep(period)
	}
}

// sleep is in the kernel, and not in Go's runtime. A signal may cut it short.
func sleep(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&ts, nil)
}

// beatPage maps the shared page: the memory behind BAR 2 of the only ivshmem
// device.
func beatPage() ([]byte, error) {
	devices, err := filepath.Glob("/sys/bus/pci/devices/*")
	if err != nil {
		return nil, err
	}
	for _, d := range devices {
		if !isDevice(d, ivshmemVendor, ivshmemDevice) {
			continue
		}
		if err := os.WriteFile(d+"/enable", []byte("1"), 0); err != nil {
			return nil, fmt.Errorf("enable beat page %s: %w", filepath.Base(d), err)
		}
		f, err := os.OpenFile(d+"/resource2", os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("open beat page: %w", err)
		}
		defer f.Close()
		page, err := unix.Mmap(int(f.Fd()), 0, liveness.PageBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return nil, fmt.Errorf("map beat page: %w", err)
		}
		return page, nil
	}
	return nil, errors.New("no ivshmem device to beat on: was the partition started by this supervisor?")
}

func isDevice(dir, vendor, device string) bool {
	for file, want := range map[string]string{"vendor": vendor, "device": device} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || strings.TrimSpace(string(b)) != want {
			return false
		}
	}
	return true
}
