package supervisor

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/takeover/morgue"
)

// bootTries is how often we boot a partition whose kernel panics or hangs before its agent greets.
// Under emulation a kernel does so now and then, while it patches its own code: QEMU before 8.1 may keep running
// what it translated before the change (QEMU's commit deba78709ae8; seen with 7.2: panics of kernels from 6.12 on, and a hang
// of 6.1 whose CPUs ran into the same int3 for ever). Nothing is at stake by then.
const bootTries = 3

// Why a partition did not come up.
var (
	errBootPanic = errors.New("its kernel panicked while it booted")
	errBootHang  = errors.New("its kernel hung while it booted")
)

// awaitPanic ends ctx once the console says that the kernel has panicked: the driver for
// the dying message may not be loaded yet.
func (sd *side) awaitPanic(ctx context.Context, end context.CancelCauseFunc) {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
		}
		if strings.Contains(tail(sd.process.Spec.ConsoleLogPath()), partition.PanicEnd) {
			end(fmt.Errorf("start partition %s: %w", sd.name, errBootPanic))
			return
		}
	}
}

// A kernel whose CPUs have run for hangRan, together, without one tick hangs. hangLook is how often we look, and hangFirst
// when we look first: to find a kernel in memory takes a while, and it is rarely needed.
const (
	hangRan   = 2 * time.Minute
	hangLook  = 10 * time.Second
	hangFirst = 30 * time.Second
)

// awaitHang ends ctx once the kernel hangs.
func (sd *side) awaitHang(ctx context.Context, end context.CancelCauseFunc) {
	memory, err := morgue.Open(sd.process.Spec.RAMPath())
	if err != nil {
		return // it is QEMU that does not run, then
	}
	defer func() { _ = memory.Close() }()
	var h hangWatch
	for wait := hangFirst; ; wait = hangLook {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		ticks, err := memory.Ticks()
		if err != nil {
			continue // the kernel is not there yet
		}
		if effort, err := sd.process.Effort(); err == nil && h.hangs(ticks, effort.Ran()) {
			end(fmt.Errorf("start partition %s: %w: no tick while its CPUs ran for %v", sd.name, errBootHang, hangRan))
			return
		}
	}
}

// hangWatch compares a kernel's ticks with what its CPUs ran.
type hangWatch struct {
	ticks uint64        // when last looked
	ran   time.Duration // when these were first seen
}

// hangs reports whether the CPUs, which have run for a time since they began, ran for hangRan without a tick. A kernel that waits
// with all CPUs idle has no ticks either, but then they do not run.
func (h *hangWatch) hangs(ticks uint64, ran time.Duration) bool {
	if ticks != h.ticks || h.ran == 0 {
		h.ticks, h.ran = ticks, ran
	}
	return ran-h.ran >= hangRan
}
