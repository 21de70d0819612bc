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
)

// ivshmem's PCI identity (QEMU, docs/specs/ivshmem-spec.txt).
const ivshmemVendor, ivshmemDevice = "0x1af4", "0x1110"

// beat starts counting on the beat page every period, from a thread of
// real-time priority that nothing but a dead kernel can hold back for long.
func beat(period time.Duration) error {
	page, err := beatPage()
	if err != nil {
		return err
	}
	// The counter is the page's second word and the page is mapped for the
	// life of the process, so the pointer stays good and aligned.
	counter := (*atomic.Uint64)(unsafe.Pointer(&page[liveness.CounterOffset]))
	binary.LittleEndian.PutUint64(page, liveness.PageMagic)
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		// The real-time class, SCHED_FIFO, is 1 (include/uapi/linux/sched.h).
		err := unix.SchedSetAttr(0, &unix.SchedAttr{
			Size: unix.SizeofSchedAttr, Policy: 1, Priority: 50,
		}, 0)
		started <- err
		if err != nil {
			return
		}
		for {
			counter.Add(1)
			ts := unix.NsecToTimespec(int64(period))
			// A signal may cut the sleep short; the beat is then early.
			_ = unix.Nanosleep(&ts, nil)
		}
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("make beat thread real-time: %w", err)
	}
	return nil
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
