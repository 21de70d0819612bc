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

// counting is the state of a thread that counts, in its own mapping. counting_amd64.s knows
// the offsets of the fields.
type counting struct {
	counter *atomic.Uint64
	pace    *atomic.Uint64 // ns; replaces the period if it is longer
	period  unix.Timespec
	sleep   unix.Timespec // argument of the thread's nanosleep(2)
}

// startCounting starts a thread that counts every period, or every pace ns if that is longer,
// and does nothing else for as long as the process lives. The thread never enters Go's
// runtime, which has locks that an ordinary thread may hold while it gets no CPU time; nor
// does the runtime spend time on managing the thread. The thread takes no signals. counter
// and pace must not be moved or freed: they must be in mapped memory.
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

// withoutSignals runs f with all signals blocked. A thread that f creates inherits that.
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
