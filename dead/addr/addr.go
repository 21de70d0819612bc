// Package addr gives every kind of number found in a dead kernel a type of its
// own, so that a physical address cannot be taken for a virtual one, nor a page
// frame for a page index.
package addr

import "fmt"

// PageSize is the unit, in bytes, in which memory files and what is written from them are
// divided: 4096, the base page of x86-64. Pages has the base page size of a kernel.
const PageSize = 1 << Pages4K

// Pages is how a kernel divides memory and files: in base pages of 2^Pages bytes.
type Pages uint

// The base page sizes: that of x86-64 is 4 KiB, that of arm64 any of these (arch/arm64/Kconfig).
const (
	Pages4K  Pages = 12
	Pages16K Pages = 14
	Pages64K Pages = 16
)

// Size returns the size of a page, in bytes.
func (p Pages) Size() int64 { return 1 << p }

// PFN returns the frame that holds a.
func (p Pages) PFN(a Phys) PFN { return PFN(a >> p) }

// Phys returns the address of the first byte of a frame.
func (p Pages) Phys(n PFN) Phys { return Phys(n) << p }

// Index returns the page of a file that holds the byte at off.
func (p Pages) Index(off int64) Index { return Index(off >> p) }

// Byte returns the offset in a file of the first byte of a page.
func (p Pages) Byte(i Index) int64 { return int64(i) << p }

// End returns the first page that lies wholly beyond the end of a file of size bytes.
func (p Pages) End(size int64) Index { return Index((min(size, 1<<62) + p.Size() - 1) >> p) }

// Phys is a physical address of the guest, in bytes.
type Phys uint64

// Virt is a virtual address of the guest's kernel, in bytes.
type Virt uint64

// PFN is a page frame number: a physical address divided by the size of a page.
type PFN uint64

// Index is the number of a page within a file.
type Index uint64

// Ino is an inode number, unique within one file system.
type Ino uint64

// Block is a block number on a file system's device, in units of its block size.
type Block uint64

// Dev is a kernel device number (dev_t): 12 bits of major, 20 bits of minor,
// as in include/linux/kdev_t.h.
type Dev uint32

func (a Phys) String() string { return fmt.Sprintf("phys %#x", uint64(a)) }
func (a Virt) String() string { return fmt.Sprintf("virt %#x", uint64(a)) }

// PageOffset returns the offset of a in its page of PageSize bytes.
func (a Virt) PageOffset() int { return int(a & (PageSize - 1)) }

// Add returns a + n. The second result is false if the sum wraps around.
func (a Virt) Add(n uint64) (Virt, bool) {
	sum := a + Virt(n)
	return sum, sum >= a
}

// IsKernel reports whether a lies in the upper part of the address space, which
// Linux keeps for the kernel on x86-64 and arm64
// (Documentation/arch/x86/x86_64/mm.rst, arch/arm64/memory.rst). The limit is right for
// 4 and for 5 levels of page tables.
func (a Virt) IsKernel() bool { return a >= 0xff00_0000_0000_0000 }

// Major is the upper part of a device number: the driver.
func (d Dev) Major() uint32 { return uint32(d) >> 20 }

// Minor is the lower part of a device number: the unit.
func (d Dev) Minor() uint32 { return uint32(d) & (1<<20 - 1) }

func (d Dev) String() string { return fmt.Sprintf("%d:%d", d.Major(), d.Minor()) }

// PhysRange is the half-open range [Start, End) of physical addresses.
type PhysRange struct{ Start, End Phys }

// Len is the number of bytes in r; an inverted range has none.
func (r PhysRange) Len() uint64 {
	if r.End <= r.Start {
		return 0
	}
	return uint64(r.End - r.Start)
}

// Contains reports whether the n bytes at a lie within r.
func (r PhysRange) Contains(a Phys, n uint64) bool {
	if a < r.Start || a > r.End {
		return false
	}
	return n <= uint64(r.End-a)
}

func (r PhysRange) String() string {
	return fmt.Sprintf("phys [%#x, %#x)", uint64(r.Start), uint64(r.End))
}

// VirtRange is the half-open range [Start, End) of virtual addresses.
type VirtRange struct{ Start, End Virt }

// Contains reports whether the n bytes at a lie within r.
func (r VirtRange) Contains(a Virt, n uint64) bool {
	if a < r.Start || a > r.End {
		return false
	}
	return n <= uint64(r.End-a)
}

func (r VirtRange) String() string {
	return fmt.Sprintf("virt [%#x, %#x)", uint64(r.Start), uint64(r.End))
}

// Span is the half-open range [Off, End) of bytes within a file.
type Span struct{ Off, End int64 }

// Len is the number of bytes in s; an inverted span has none.
func (s Span) Len() int64 { return max(0, s.End-s.Off) }

// Clip returns the part of s that lies before end.
func (s Span) Clip(end int64) Span {
	s.End = min(s.End, end)
	if s.End < s.Off {
		s.End = s.Off
	}
	return s
}

func (s Span) String() string { return fmt.Sprintf("bytes [%d, %d)", s.Off, s.End) }

// AlignUp returns n rounded up to a multiple of PageSize.
func AlignUp(n int64) int64 { return (n + PageSize - 1) &^ (PageSize - 1) }
