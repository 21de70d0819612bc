package kernel

import (
	"fmt"

	"understudy/addr"
)

// newest picks, of several kernels that all check out, the one that lives or
// lived last: a machine that was reset, or changed kernels by kexec, may still
// hold the old image untouched.
func newest(kernels []*Kernel) (*Kernel, error) {
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

// wallClock returns the kernel's idea of the time, in seconds since 1970.
func (k *Kernel) wallClock() (uint64, error) {
	l := k.types.Layout("timekeeper")
	field := l.Field("xtime_sec", 8)
	if err := l.Err(); err != nil {
		return 0, err
	}
	core, err := k.Symbol("tk_core")
	if err != nil {
		return 0, err
	}
	// tk_core is an anonymous structure of a sequence counter and a timekeeper
	// up to 6.12, tk_data after (commit 1d72d7b5fd18, 6.13); in both the
	// timekeeper, aligned to 8 bytes, follows a counter of 4 bytes.
	off := 8
	if d := k.types.Layout("tk_data"); d.Err() == nil {
		off = d.Field("timekeeper").Off
	}
	return k.U64(field.In(core) + addr.Virt(off))
}
