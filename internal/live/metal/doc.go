// Package metal starts a second stock Linux kernel, the understudy, on reserved CPUs and
// memory of the machine that it runs on, beside the machine's own kernel, and later stops
// the other kernel's CPUs and devices: without a hypervisor, a patch, or a module.
//
// # Words
//
// The machine's own Linux is the active side; what is started beside it is the
// understudy. Neither is isolated from the other: they trust each other.
//
// # Where things are
//
// The active kernel leaves three ranges of memory alone (memmap=), which the parameter
// understudy.metal= names (Reservation):
//
//   - Low, below 1 MiB: what a CPU runs when it is started, in real mode; and the
//     understudy kernel's own real-mode code.
//   - Mid, below 4 GiB: tables, the shared pages (Layout), and memory for devices that
//     reach no higher.
//   - High: the understudy's kernel, image, and nearly all of its memory.
//
// # Caveats
//
// This package writes to /dev/mem. A wrong address crashes the machine: everything is
// derived from what this machine says of itself, and refused if it is inconsistent.
package metal
