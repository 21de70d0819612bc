package ram

import (
	"slices"

	"understudy.dev/understudy/dead/addr"
)

// Arrangement is where the bytes of a file that has only memory lie in the physical address
// space of its machine: Low bytes from Base on, and the rest, if there is any, from 4 GiB on.
// Between them is a hole for devices.
type Arrangement struct {
	Base addr.Phys
	Low  int64
}

// Machine is a kind of machines that arrange their memory alike.
type Machine int

const (
	// PC is an x86 machine, whose memory begins at 0.
	PC Machine = iota
	// Board is an arm64 machine. Its memory begins at 1 GiB (QEMU's virt, hw/arm/virt.c,
	// base_memmap; Cloud Hypervisor, arch/src/aarch64/layout.rs), or at 2 GiB (Firecracker,
	// src/arch/aarch64/layout.rs; crosvm).
	Board
)

// highStart is where memory continues that does not fit below the hole for devices.
const highStart addr.Phys = 0x1_0000_0000

// Unarranged is a Memory whose file does not say how its machine arranged it. It is
// arranged as QEMU's q35 does it, until the kernel in it gives a better answer.
type Unarranged interface {
	Memory
	// Guesses returns the known arrangements of a kind of machines; for PCs, the one in use comes first.
	Guesses(of Machine) []Arrangement
	// Bytes returns the size of the file.
	Bytes() int64
	// Blocks returns how many blocks the memory in the file consists of, one after the other. If there
	// are several, the last ones may have been plugged in later, and lie apart from the others.
	Blocks() int
	// Arranged returns the same memory with another arrangement. It is valid until the Memory
	// itself is closed; its own Close does nothing.
	Arranged(a Arrangement) Memory
}

// lowSizes are the sizes of the memory below 4 GiB on machines whose memory does not fit there: QEMU's
// q35 and i440fx (hw/i386/pc_q35.c, pc_q35_init; pc_piix.c, pc_init1), whose size microvm
// has too (microvm.c), and Firecracker (arch/x86_64/layout.rs, FIRST_ADDR_PAST_32BITS less
// the gap).
var lowSizes = []int64{q35LowSize, 0xc000_0000, 0xe000_0000, 0xd000_0000}

// lowStep is what all other sizes are assumed to be a multiple of.
const lowStep = 256 << 20

// boards returns how memory may lie in arm64 machines, where all of it is in one piece, and in Cloud
// Hypervisor, which keeps the last 64 MiB below 4 GiB for itself (layout.rs, MEM_32BIT_RESERVED_START).
func boards(size int64) []Arrangement {
	const virt, firecracker, reserved = 1 << 30, 2 << 30, 64 << 20
	out := []Arrangement{{virt, size}, {firecracker, size}, {0, size}}
	if low := int64(highStart) - virt - reserved; size > low {
		out = append(out, Arrangement{virt, low})
	}
	return out
}

func guesses(size int64) []Arrangement {
	lows := slices.Clone(lowSizes)
	var out []Arrangement
	if size >= q35SplitFrom {
		out = append(out, Arrangement{Low: q35LowSize})
	}
	if size <= int64(highStart) {
		out = append(out, Arrangement{Low: size})
	}
	for low := int64(lowStep); low < int64(highStart); low += lowStep {
		lows = append(lows, low)
	}
	for _, low := range lows {
		if a := (Arrangement{Low: low}); size > low && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// extents returns where the bytes of a file of a size are.
func (a Arrangement) extents(size int64) extents {
	low := min(a.Low, size)
	x := extents{{phys: addr.PhysRange{Start: a.Base, End: a.Base + addr.Phys(low)}}}
	if size > low {
		x = append(x, extent{phys: addr.PhysRange{Start: highStart, End: highStart + addr.Phys(size-low)}, off: low})
	}
	return x
}

// raw is a RAM file.
type raw struct {
	arrangeable
	size   int64
	blocks int
}

// arrangeable is memory that is stored in a file as it is.
type arrangeable interface {
	Sparse
	Described
	describe(change func(*Info))
	// arranged returns the memory of the same file, with other extents.
	arranged(x extents, im image) Memory
}

func (r *raw) Guesses(of Machine) []Arrangement {
	if of == Board {
		return boards(r.size)
	}
	return guesses(r.size)
}

func (r *raw) Bytes() int64 { return r.size }

func (r *raw) Blocks() int { return r.blocks }

func (r *raw) Arranged(a Arrangement) Memory {
	im := image{info: r.Info()}
	x := a.extents(r.size)
	im.setMemory(x.ranges(), x.bytes())
	return r.arranged(x, im)
}

// borrowed is a Memory that is closed by another one.
type borrowed struct{ arrangeable }

func (borrowed) Close() error { return nil }
