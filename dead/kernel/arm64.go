package kernel

import (
	"errors"
	"fmt"
	mathbits "math/bits"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ram"
)

// arm64 is ARMv8-A and its successors, in 64-bit state.
var arm64 = architecture{
	name: "aarch64", mark: "kimage_voffset", machine: ram.Board,
	tables: arm64Tables, direct: arm64Direct, pages: arm64Pages, arrangement: arm64Arrangement,
	sizes: []addr.Pages{addr.Pages4K, addr.Pages16K, addr.Pages64K},
	same:  []string{"_stext", "init_uts_ns", "swapper_pg_dir"},
	bases: []string{"kimage_voffset", "memstart_addr"},
}

// Bits of a descriptor (Arm ARM, DDI 0487, D8.3; in the kernel
// arch/arm64/include/asm/pgtable-hwdef.h).
const (
	descValid    = 1 << 0
	descTable    = 1 << 1    // it is a table and not a block; on the lowest level it must be set
	descAddrMask = 1<<48 - 1 // without the bits below a page's size
	// With FEAT_LPA2, and pages of 4 or 16 KiB, addresses have 52 bits: two more in their usual place,
	// and the upper two where the shareability is otherwise.
	descAddrMask2 = 1<<50 - 1
	descHighShift = 8
	descHighMask  = 3
	// With FEAT_LPA, and pages of 64 KiB, the upper four are in bits that are otherwise unused.
	descHighShift64K = 12
	descHighMask64K  = 15
)

// arm64Tables finds the tables that TTBR1 points to. They cover as many bits of an address as the
// configuration says, or fewer if the CPU cannot do that: the note says how many
// since 5.9 (commit bbdbc11804ff).
func arm64Tables(n *note) (*paging, error) {
	root, err := n.symbol("swapper_pg_dir")
	if err != nil {
		return nil, err
	}
	offset, err := n.number("kimage_voffset")
	if err != nil {
		return nil, err
	}
	bits, err := n.number("VA_BITS")
	if err != nil {
		return nil, err
	}
	// With pages of 64 KiB the tables cover as many bits as the configuration says, and for a
	// CPU that cannot do that, TTBR1 points into the middle of the first table
	// (arch/arm64/include/asm/assembler.h, offset_ttbr1).
	if size, err := n.number("TCR_EL1_T1SZ"); err == nil && n.unit != addr.Pages64K {
		bits = 64 - size
	}
	p, err := arm64Paging(n.unit, int(bits))
	if err != nil {
		return nil, err
	}
	p.rootVirt, p.root = root, addr.Phys(root-addr.Virt(offset))
	return p, nil
}

// arm64Paging reads page tables of a page size, for addresses of so many bits, above which all bits
// are set. Linux uses more than 48 bits with pages of 4 and 16 KiB only if the CPU has
// FEAT_LPA2, and then sets TCR_EL1.DS (arch/arm64/mm/proc.S).
func arm64Paging(unit addr.Pages, bits int) (*paging, error) {
	if bits < 36 || bits > 52 {
		return nil, fmt.Errorf("addresses of %d bits", bits)
	}
	large := bits > 48 && unit != addr.Pages64K
	mask := uint64(descAddrMask)
	if large {
		mask = descAddrMask2
	}
	mask &^= uint64(unit.Size() - 1)
	blocks := 2 // highest level that may map a large page
	switch {
	case unit == addr.Pages4K && large:
		blocks = 4
	case unit == addr.Pages4K || large:
		blocks = 3
	}
	perTable := int(unit) - 3 // entries, as a power of two
	return &paging{
		unit: unit, levels: (bits - int(unit) + perTable - 1) / perTable, bits: bits, high: -(1 << bits),
		decode: func(entry uint64, level int) (descriptor, bool) {
			d := descriptor{addr.Phys(entry & mask), level == 1 || entry&descTable == 0}
			switch {
			case large:
				d.phys |= addr.Phys(entry>>descHighShift&descHighMask) << 50
			case unit == addr.Pages64K:
				d.phys |= addr.Phys(entry>>descHighShift64K&descHighMask64K) << 48
			}
			return d, entry&descValid != 0 && (level > 1 || entry&descTable != 0) && (!d.page || level <= blocks)
		},
	}, nil
}

// layoutBits returns for how many bits of an address the kernel was configured: its layout follows
// from that, and not from what its CPU can do (arch/arm64/include/asm/memory.h,
// PAGE_OFFSET; since 5.4, commit 14c127c957c1, the linear map is the lower half).
func (n *note) layoutBits() (int, error) {
	bits, err := n.number("VA_BITS")
	if err == nil && (bits < 36 || bits > 52) {
		err = fmt.Errorf("VA_BITS is %d", bits)
	}
	return int(bits), err
}

// memoryStart returns memstart_addr, which the linear map begins with. It is below all memory,
// and may be negative.
func (k *Kernel) memoryStart() (int64, error) {
	start, err := k.note.number("PHYS_OFFSET")
	if errors.Is(err, ErrNotFound) {
		var v uint64
		v, err = k.symbolU64("memstart_addr")
		start = int64(v)
	}
	if err == nil && start%k.unit.Size() != 0 {
		err = fmt.Errorf("memstart_addr is %#x, which is not aligned to a page", start)
	}
	return start, err
}

// leastBits returns how many bits of an address a kernel that is configured for bits uses if its
// CPU cannot do them: for 52 bits with pages of 16 KiB, one level less (VA_BITS_MIN in
// arch/arm64/include/asm/memory.h, since 6.9).
func (k *Kernel) leastBits(bits int) int {
	if bits > 48 && k.unit == addr.Pages16K {
		return 47
	}
	return min(bits, 48)
}

// arm64Direct finds the linear map.
func arm64Direct(k *Kernel) (linear, error) {
	bits, err := k.note.layoutBits()
	if err != nil {
		return linear{}, err
	}
	start, err := k.memoryStart()
	if err != nil {
		return linear{}, err
	}
	if len(k.ranges) == 0 {
		return linear{}, errors.New("there is no memory")
	}
	first, top := k.ranges[0].Start, k.top()
	pageOffset, end := -(addr.Virt(1) << bits), -(addr.Virt(1) << (k.leastBits(bits) - 1))
	l := linear{phys: first}
	l.virt.Start = pageOffset + addr.Virt(first) - addr.Virt(start)
	l.virt.End = l.virt.Start + addr.Virt(top-first)
	if l.virt.Start < pageOffset || l.virt.End > end || l.virt.End < l.virt.Start {
		return linear{}, fmt.Errorf("the linear map cannot be at %v", l.virt)
	}
	return l, nil
}

// arm64Pages finds the map of page structures. It begins with the structure for memoryStart.
func arm64Pages(k *Kernel) (addr.Virt, error) {
	start, err := k.memoryStart()
	if err != nil {
		return 0, err
	}
	bits, err := k.note.layoutBits()
	if err != nil {
		return 0, err
	}
	starts, err := k.memMapStarts(bits)
	if err != nil {
		return 0, err
	}
	var found []addr.Virt
	for _, at := range starts {
		base := at - addr.Virt(start>>k.unit*int64(k.pageSize))
		// The structure of a page that is there must be mapped.
		if _, err := k.Physical(base + addr.Virt(uint64(k.unit.PFN(k.notePA))*uint64(k.pageSize))); err == nil {
			found = append(found, base)
		}
	}
	if len(found) != 1 {
		return 0, fmt.Errorf("struct pages are at none or several of %v", starts)
	}
	return found[0], nil
}

// memMapStarts returns the possible values of VMEMMAP_START. The note has it since 5.18 (commit
// 2369f171d5c5). Before, the map had room for the structure of each page of the linear map, and
// ended 2 MiB below the last address; since 5.11 (commit 8c96400d6a39) a structure is as far into
// its part of the addresses as its page is into the linear map.
func (k *Kernel) memMapStarts(bits int) ([]addr.Virt, error) {
	told, err := k.note.number("VMEMMAP_START")
	if err == nil {
		return []addr.Virt{addr.Virt(told)}, nil
	}
	if !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	linear := addr.Virt(1)<<bits - addr.Virt(1)<<(k.leastBits(bits)-1)
	// How much smaller than a page a struct page is, rounded up to a power of two; as a power of two.
	smaller := int(k.unit) - mathbits.Len(uint(k.pageSize-1))
	if smaller <= 0 {
		return nil, fmt.Errorf("struct page has %d bytes", k.pageSize)
	}
	return []addr.Virt{-(linear >> smaller) - 2<<20, -(addr.Virt(1) << (bits - smaller))}, nil
}

var errNotArranged = errors.New("the kernel's System RAM is not where the file was taken to have it")

// arm64Arrangement compares the memory that the kernel was told of with where the file was
// assumed to have it. Memory in one piece lies where the page tables say; its end, which mem= may
// have hidden from the kernel, matters only after a hole.
func arm64Arrangement(k *Kernel, _ ram.Unarranged, guess ram.Arrangement) (ram.Arrangement, error) {
	told, err := k.systemRAM()
	if err != nil {
		return guess, fmt.Errorf("find out how memory is arranged: %w", err)
	}
	var last addr.Phys
	for _, r := range told {
		if !within(k.ranges, r) {
			return guess, fmt.Errorf("%w: %v", errNotArranged, r)
		}
		last = max(last, r.End)
	}
	if len(told) == 0 || len(k.ranges) > 1 && k.top()-last > lowReserved {
		return guess, fmt.Errorf("%w: it ends at %v", errNotArranged, last)
	}
	return guess, nil
}
