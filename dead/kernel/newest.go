package kernel

import (
	"errors"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/addr"
)

// newest picks, of several kernels that all check out, the one that lives or
// lived last: a machine that was reset, or that changed kernels by kexec, may still
// hold the old image untouched. A kernel whose purpose was to dump another does not
// count.
func newest(kernels []*Kernel) (*Kernel, error) {
	if others := slices.DeleteFunc(slices.Clone(kernels), (*Kernel).dumps); len(others) > 0 {
		kernels = others
	}
	var best *Kernel
	var bestTime uint64
	tie := false
	for _, k := range kernels {
		t, err := k.wallClock()
		if err != nil {
			return nil, fmt.Errorf("find kernel: %w: %d kernels: %w", ErrAmbiguous, len(kernels), err)
		}
		switch {
		case best == nil || t > bestTime:
			best, bestTime, tie = k, t, false
		case t == bestTime:
			tie = true
		}
	}
	if tie {
		return nil, fmt.Errorf("find kernel: %w: %d kernels of the same age", ErrAmbiguous, len(kernels))
	}
	return best, nil
}

// dumps reports whether the kernel was started by the crash of another, to dump
// it: it was told where the other's ELF header is (kernel/crash_dump.c,
// elfcorehdr_addr; include/linux/crash_dump.h, is_kdump_kernel).
func (k *Kernel) dumps() bool {
	at, err := k.Symbol("elfcorehdr_addr")
	if err != nil {
		return false
	}
	header, err := k.U64(at)
	return err == nil && header != ^uint64(0) // ELFCORE_ADDR_MAX
}

// wallClock returns the kernel's idea of the time, in seconds since 1970.
func (k *Kernel) wallClock() (uint64, error) {
	l := k.types.Layout("timekeeper")
	field := l.Field("xtime_sec", 8)
	if err := l.Err(); err != nil {
		return 0, err
	}
	at, err := k.Timekeeper()
	if err != nil {
		return 0, err
	}
	return k.U64(field.In(at))
}

// Timekeeper returns the address of the kernel's struct timekeeper
// (include/linux/timekeeper_internal.h). It lies in tk_core, and since 6.17 (commit
// 22c62b9a84b8) in the first element of timekeeper_data.
func (k *Kernel) Timekeeper() (addr.Virt, error) {
	core, err := k.Symbol("tk_core")
	if errors.Is(err, ErrNotFound) {
		core, err = k.Symbol("timekeeper_data")
	}
	return core + addr.Virt(k.types.beforeTimekeeper()), err
}

// beforeTimekeeper returns how many bytes come before the timekeeper: a sequence counter, in an
// anonymous structure, which has more members if locks are debugged
// (include/linux/seqlock.h); the structure became a type, tk_data, in 6.13 (commit 10f7c178a910).
func (t *Types) beforeTimekeeper() int {
	if d := t.Layout("tk_data"); d.Has("timekeeper") {
		return d.Field("timekeeper").Off
	}
	const align = 8 // of a timekeeper
	counter := t.Layout("seqcount_raw_spinlock")
	return max(align, (counter.Size+align-1)&^(align-1)) // without that type the counter has 4 bytes
}
