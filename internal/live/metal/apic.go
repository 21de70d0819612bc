package metal

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Registers of the local APIC, and words of its interrupt command register (Intel SDM
// volume 3, 11.4.1 and 11.6.1).
const (
	apicTPR     = 0x080
	apicICRLow  = 0x300
	apicICRHigh = 0x310

	icrPending = 1 << 12
	icrINIT    = 0x4500 // INIT, level assert, edge
	icrStart   = 0x4600 // start-up, with the number of the page to start in
	icrNMI     = 0x4400
)

// apic is the local APIC of the CPU that accesses it. Its address is the same on all CPUs.
type apic struct{ *window }

func openAPIC(at uint64) (apic, error) {
	w, err := mapPhysical(Range{at, at + pageBytes})
	return apic{w}, err
}

var errPending = errors.New("send interrupt: the delivery status in the local APIC's ICR stays pending")

// send sends an interprocessor interrupt to one CPU. The command is two words, and the kernel
// must not send an interrupt of its own between them: this thread stays on its CPU, which
// takes no interrupts meanwhile.
func (a apic) send(to, command uint32) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return fmt.Errorf("send interrupt: %w", err)
	}
	cpu := 0
	for !before.IsSet(cpu) && cpu < 1024 {
		cpu++
	}
	var one unix.CPUSet
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return fmt.Errorf("send interrupt: %w", err)
	}
	defer func() { _ = unix.SchedSetaffinity(0, &before) }()
	return a.command(to, command)
}

// command is the part of send that must run on one CPU.
func (a apic) command(to, command uint32) error {
	var scratch [pageBytes / 4]uint32
	issue(&scratch, to, command) // a trial run: its code and this stack are in memory from here on
	if !a.idle() || !issue((*[pageBytes / 4]uint32)(unsafe.Pointer(&a.data[0])), to, command) || !a.idle() {
		return errPending
	}
	return nil
}

// pendingLooks is how many times issue checks whether the last command is gone, which it
// normally is at once.
const pendingLooks = 1000

// issue writes a command with interrupts kept out, unless the last command stays pending.
// While interrupts are kept out, this thread must not go to sleep: nothing would wake this CPU
// again. So issue has nothing at which Go's scheduler could take the thread away: no call that
// checks the stack, and no loop that lasts.
//
//go:nosplit
//go:noinline
func issue(page *[pageBytes / 4]uint32, to, command uint32) (sent bool) {
	priority := atomic.LoadUint32(&page[apicTPR/4])
	store32(&page[apicTPR/4], 0xff)
	for range pendingLooks {
		if atomic.LoadUint32(&page[apicICRLow/4])&icrPending == 0 {
			store32(&page[apicICRHigh/4], to<<24)
			store32(&page[apicICRLow/4], command)
			sent = true
			break
		}
	}
	store32(&page[apicTPR/4], priority)
	return sent
}

func (a apic) idle() bool {
	for range 100000 {
		if a.load32(apicICRLow)&icrPending == 0 {
			return true
		}
	}
	return false
}

// start makes CPUs start in a page below 1 MiB, as a PC's firmware and kernels do (Intel SDM
// volume 3, 9.4.4). The machine's boot CPU must not be among them: an INIT to it resets the
// machine.
func (a apic) start(page byte, cpus ...uint32) error {
	for _, cpu := range cpus {
		if err := a.send(cpu, icrINIT); err != nil {
			return err
		}
	}
	time.Sleep(10 * time.Millisecond)
	for range 2 {
		for _, cpu := range cpus {
			if err := a.send(cpu, icrStart|uint32(page)); err != nil {
				return err
			}
		}
		time.Sleep(200 * time.Microsecond)
	}
	return nil
}
