package partition

import "slices"

// What QEMU, from 6.2 on, and the kernels that run in it need to be told, and why. Everything here
// is a workaround or a choice that looks odd; how the pieces come together is in spec.go.

// qemu is the program.
const qemu = "qemu-system-x86_64"

// headless is a machine with no devices that it was not told to have.
var headless = []string{"-nodefaults", "-no-user-config", "-display", "none"}

// sandbox is what QEMU may not ask its kernel for (seccomp): to run programs, first of all.
// elevateprivileges would have it killed when it changes its user, which it does after
// that.
var sandbox = []string{"on", "obsolete=deny", "spawn=deny", "resourcecontrol=deny"}

// tcgCPU is the emulated CPU: all features that TCG has, without
//   - cx16: 6.12 double-faults at boot at a cmpxchg16b that TCG emulates;
//   - erms, fsrm: TCG emulates fast string operations byte by byte, and the kernel would
//     copy all data with them.
const tcgCPU = "max,erms=off,fsrm=off,cx16=off"

// tcgParameters are what a kernel should know under emulation. What the kernel does not
// know goes to init as its environment.
var tcgParameters = []string{
	// Otherwise its clock is the HPET, and each reading of that stops for QEMU's main
	// loop: an eighth of a takeover's time.
	"tsc=reliable", "clocksource=tsc",
	// It counts ticks of its timer at boot, and panics if a busy machine gives it none
	// (arch/x86/kernel/apic/io_apic.c, timer_irq_works).
	"no_timer_check",
	// Go programs, the agent first, hash faster without emulated AVX2.
	"GODEBUG=cpu.avx2=off",
}

// allParameters are what every kernel boots with.
var allParameters = []string{
	"console=ttyS0",
	"panic=0",    // a dead kernel stays as it is: no reboot by itself
	"oops=panic", // an oops is a death too: what it holds locked is lost
	"random.trust_cpu=on",
	"quiet",
}

// panicDevices carry the dying message. Kernels have a driver for that on PCI since 5.13,
// before only for that on an ISA port.
var panicDevices = []string{"pvpanic-pci", "pvpanic"}

// args are the accelerator and the CPU that goes with it.
func (a Accel) args() []string {
	if a == KVM {
		return []string{"-accel", "kvm", "-cpu", "host"}
	}
	return []string{"-accel", "tcg,thread=multi", "-cpu", tcgCPU}
}

// kernelParameters are what a kernel boots with.
func (a Accel) kernelParameters() []string {
	if a == KVM {
		return slices.Clone(allParameters)
	}
	return slices.Concat(allParameters, tcgParameters)
}
