// Package ram gives read-only access to the physical memory of a machine that
// is dead or still alive, from a RAM file or from any of the usual dump formats,
// and never makes up a byte: what is absent is a Fault.
//
// # Caveats
//
// A mapped file (a RAM file, an ELF core, a LiME capture) must not be truncated
// while it is open: the operating system answers a read beyond its new end with
// SIGBUS, which ends the process. The memory of a living machine changes while it
// is read; decode a value once and check that copy.
//
// Some tools write zeros for what they could not read, and the file does not
// say so: LiME for pages that are slow, invalid or broken, and every tool that
// writes a "padded" image. Such zeros cannot be distinguished from real ones.
package ram

import (
	"fmt"
	"iter"

	"understudy.dev/understudy/dead/addr"
)

// Memory is the physical memory of one machine. It is safe for concurrent use,
// except for Close.
type Memory interface {
	// View returns the n bytes at pa, without copying where that is possible.
	// The result must not be written to and is valid until Close. If any of
	// the bytes is absent, the error is a *Fault with the address of the first
	// that is.
	View(pa addr.Phys, n int) ([]byte, error)
	// Ranges returns where the machine has memory, in ascending order,
	// disjoint. Parts of it may have been excluded from a dump.
	Ranges() []addr.PhysRange
	Close() error
}

// Sparse is a Memory that knows which parts of it were never touched and hence
// read as zero, or are absent. A search skips those: reading them would make the
// host allocate pages for them, or fail.
type Sparse interface {
	Memory
	// Touched yields the parts of r that may hold something else than zeros,
	// in ascending order. All of their bytes are present.
	Touched(r addr.PhysRange) iter.Seq[addr.PhysRange]
}

// Noted is a Memory whose file may contain the kernel's VMCOREINFO note.
type Noted interface {
	Memory
	// VMCoreInfo returns the text of the note: lines of KEY=value. It must not
	// be written to. The second result is false if the file has no note. The
	// text is only as good as the file: compare it with what is in memory.
	VMCoreInfo() ([]byte, bool)
}

// Described is a Memory that can describe the file it comes from. What OpenFile
// returns is Described.
type Described interface {
	Memory
	Info() Info
}

// Fault says that physical memory cannot be read: it is outside of the machine,
// was left out of a dump, or is damaged.
type Fault struct {
	Addr addr.Phys // the first absent byte
	Len  int       // how many bytes were asked for from there
	// Excluded says that the machine had memory there, which was left out when
	// the dump was made.
	Excluded bool
	// Cause is why memory that is in the file cannot be read; nil if it is not
	// in the file.
	Cause error
}

func (f *Fault) Error() string {
	switch {
	case f.Cause != nil:
		return fmt.Sprintf("read memory: %d bytes at %v: %v", f.Len, f.Addr, f.Cause)
	case f.Excluded:
		return fmt.Sprintf("read memory: %d bytes at %v were excluded when the dump was made", f.Len, f.Addr)
	}
	return fmt.Sprintf("read memory: %d bytes at %v are absent", f.Len, f.Addr)
}

func (f *Fault) Unwrap() error { return f.Cause }
