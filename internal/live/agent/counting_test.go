package agent

import (
	"os"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestCounting: a thread counts as often as it is told to, even while Go collects garbage and
// signals arrive, and less often if the pace says so.
func TestCounting(t *testing.T) {
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	counter, pace := (*atomic.Uint64)(unsafe.Pointer(&page[8])), (*atomic.Uint64)(unsafe.Pointer(&page[24]))
	const period = 2 * time.Millisecond
	tid, err := startCounting(counter, period, pace)
	if err != nil {
		t.Fatal(err)
	}
	if err := keepOn(tid, 0); err != nil {
		t.Error(err)
	}
	within := func(counts uint64, limit time.Duration) time.Duration {
		t.Helper()
		from, began := counter.Load(), time.Now()
		for counter.Load() < from+counts {
			if time.Since(began) > limit {
				t.Fatalf("%d counts in %v", counter.Load()-from, limit)
			}
			_ = unix.Kill(os.Getpid(), unix.SIGURG)
			time.Sleep(period / 2)
		}
		return time.Since(began)
	}
	if took := within(20, time.Minute); took < 19*period {
		t.Errorf("20 counts in %v, one every %v is right", took, period)
	}
	for _, slow := range []time.Duration{40 * time.Millisecond, 1050 * time.Millisecond} {
		pace.Store(uint64(slow))
		within(1, time.Minute) // the thread may still be in a short sleep
		if took := within(2, time.Minute); took < slow {
			t.Errorf("2 counts in %v, one every %v is right", took, slow)
		}
	}
	pace.Store(uint64(period / 2))
	within(2, time.Minute)
	if took := within(20, time.Minute); took < 19*period {
		t.Errorf("20 counts in %v: a pace does not make it faster than %v", took, period)
	}
}
