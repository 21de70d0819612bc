package agent

import (
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// counting is what a thread that counts works on, in memory of its own: counting_amd64.s
// knows the offsets.
type counting struct {
	counter *atomic.Uint64
	pace    *atomic.Uint64 // ns; counts if it is longer than the period
	period  unix.Timespec
	sleep   unix.Timespec // the thread's
}

// startCounting starts a thread that counts every period, or as seldom as pace says, and
// does nothing else for as long as the process lives. It never enters Go's runtime: that has
// locks, and who holds one may be an ordinary thread that gets no time; nor does it cost a
// runtime that looks after it. It takes no signals. What it is given must not be moved or
// freed: memory that is mapped.
func startCounting(counter *atomic.Uint64, period time.Duration, pace *atomic.Uint64) (tid int, err error) {
	own, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, err
	}
	t := (*counting)(unsafe.Pointer(&own[0]))
	*t = counting{counter: counter, pace: pace, period: unix.NsecToTimespec(int64(period))}
	if pace == nil {
		t.pace = (*atomic.Uint64)(unsafe.Pointer(&own[unsafe.Sizeof(*t)])) // zero
	}
	tid = withoutSignals(func() int { return cloneCounting(t) })
	if tid < 0 {
		return 0, fmt.Errorf("clone: %w", unix.Errno(-tid))
	}
	return tid, nil
}

// withoutSignals runs f with all signals blocked, as a thread that it makes has them then.
func withoutSignals(f func() int) int {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^uint64(0)
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		return -int(unix.EINVAL)
	}
	defer func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil) }()
	return f()
}
