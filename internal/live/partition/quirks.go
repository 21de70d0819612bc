package partition

import "slices"

// What QEMU, from 6.2 on, and the kernels that run in it need to be told, and why. Everything here
// is a workaround or a choice that looks odd; how the pieces come together is in spec.go.

// qemu is the program.
const qemu = "qemu-system-x86_64"

// headless makes a machine that has only the devices that it is told to have.
var headless = []string{"-nodefaults", "-no-user-config", "-display", "none"}

// sandbox says what QEMU may not ask its kernel for (seccomp): above all, to run programs.
// elevateprivileges=deny would get it killed when it changes its user, which it does after
// the sandbox is set up.
var sandbox = []string{"on", "obsolete=deny", "spawn=deny", "resourcecontrol=deny"}

// tcgCPU is the emulated CPU: all features that TCG has, without
//   - cx16: 6.12 double-faults at boot at a cmpxchg16b that TCG emulates;
//   - erms, fsrm: TCG emulates fast string operations byte by byte, and the kernel would
//     copy all data with them.
const tcgCPU = "max,erms=off,fsrm=off,cx16=off"

// tcgParameters are what a kernel should know under emulation. What the kernel does not
// know goes to init as its environment.
var tcgParameters = []string{
	// Otherwise its clock is the HPET, and each read of that waits for QEMU's main
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
	"oops=panic", // an oops is a death too: the locks that it holds are never released
	"random.trust_cpu=on",
	"quiet",
}

// panicDevices carry the dying message. Kernels have had a driver for the PCI device since 5.13,
// and before that only for the one on an ISA port.
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
