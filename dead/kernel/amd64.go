package kernel

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ram"
)

// amd64 is x86-64.
var amd64 = architecture{
	name: "x86_64", mark: "phys_base", machine: ram.PC,
	tables: amd64Tables, direct: amd64Direct, pages: amd64Pages, arrangement: amd64Arrangement,
	sizes: []addr.Pages{addr.Pages4K},
	same:  []string{"_stext", "init_uts_ns", "init_top_pgt"},
	bases: []string{"page_offset_base", "vmemmap_base"},
}

// startKernelMap is where the kernel image is linked: __START_KERNEL_map
// (arch/x86/include/asm/page_64_types.h). Within the image, the physical address is the
// virtual one minus this plus phys_base.
const startKernelMap addr.Virt = 0xffff_ffff_8000_0000

// Bits of a page-table entry on x86-64 (Intel SDM volume 3A, 4.5; in the kernel
// arch/x86/include/asm/pgtable_types.h).
const (
	ptePresent  = 1 << 0
	pteLarge    = 1 << 7                     // in a PUD or PMD entry: maps a large page
	pteAddrMask = (1<<52 - 1) &^ (1<<12 - 1) // the physical address
)

func amd64Tables(n *note) (*paging, error) {
	root, err := n.symbol("swapper_pg_dir")
	if err != nil {
		return nil, err
	}
	physBase, err := n.number("phys_base")
	if err != nil {
		return nil, err
	}
	if root < startKernelMap {
		return nil, fmt.Errorf("swapper_pg_dir at %v is outside of the image", root)
	}
	// NUMBER(pgtable_l5_enabled) is there since 4.20, NUMBER(sme_mask) since
	// 5.0 (arch/x86/kernel/crash_core_64.c, machine_kexec_64.c).
	levels := 4
	if l5, err := n.number("pgtable_l5_enabled"); err == nil && l5 == 1 {
		levels = 5
	}
	var sme uint64
	if mask, err := n.number("sme_mask"); err == nil {
		sme = uint64(mask)
	}
	p := amd64Paging(levels, sme)
	p.rootVirt, p.root = root, addr.Phys(int64(root-startKernelMap)+physBase)
	return p, nil
}

// amd64Paging reads page tables of 4 or 5 levels. sme is the encryption bit in entries, or 0.
func amd64Paging(levels int, sme uint64) *paging {
	bits := 12 + 9*levels
	return &paging{
		unit: addr.Pages4K, levels: levels, bits: bits,
		// The lower half of the addresses belongs to programs.
		low: 1 << (bits - 1), high: -(1 << (bits - 1)),
		decode: func(entry uint64, level int) (descriptor, bool) {
			entry &^= sme
			// The lower bits in a large page's entry are not part of the address: bit 12 is
			// the PAT bit.
			return descriptor{addr.Phys(entry & pteAddrMask), level == 1 || (level <= 3 && entry&pteLarge != 0)}, entry&ptePresent != 0
		},
	}
}

// Where the direct map and the map of page structures are in a kernel that has no variables for
// them, because it can neither move them (CONFIG_RANDOMIZE_MEMORY) nor have page tables of 5
// levels: __PAGE_OFFSET_BASE_L4 and __VMEMMAP_BASE_L4 (arch/x86/include/asm/page_64_types.h and
// pgtable_64_types.h; since 4.20, commit d52888aa2753).
const (
	fixedDirectMap  = 0xffff_8880_0000_0000
	fixedPageStruct = 0xffff_ea00_0000_0000
)

// base returns the value of a variable, or its fixed value if the kernel does not have the variable.
func (k *Kernel) base(name string, fixed uint64) (uint64, error) {
	v, err := k.symbolU64(name)
	if errors.Is(err, ErrNotFound) && k.paging.levels == 4 {
		return fixed, nil
	}
	return v, err
}

// amd64Direct finds the direct map. The caller checks that it is there.
func amd64Direct(k *Kernel) (linear, error) {
	base, err := k.base("page_offset_base", fixedDirectMap)
	if err != nil {
		return linear{}, err
	}
	if at := addr.Virt(base); !at.IsKernel() {
		return linear{}, fmt.Errorf("page_offset_base is %v, not a kernel address", at)
	}
	return linear{virt: addr.VirtRange{Start: addr.Virt(base), End: addr.Virt(base) + addr.Virt(k.top())}}, nil
}

// amd64Pages finds the map of page structures. The page of the note surely has a structure, which must be mapped.
func amd64Pages(k *Kernel) (addr.Virt, error) {
	v, err := k.base("vmemmap_base", fixedPageStruct)
	if err != nil {
		return 0, err
	}
	base := addr.Virt(v)
	if !base.IsKernel() {
		return 0, fmt.Errorf("vmemmap_base is %v, not a kernel address", base)
	}
	if _, err := k.Physical(base + addr.Virt(uint64(k.unit.PFN(k.notePA))*uint64(k.pageSize))); err != nil {
		return 0, fmt.Errorf("struct pages are not from %v on, as with CONFIG_SPARSEMEM_VMEMMAP (%w)", base, err)
	}
	return base, nil
}

// amd64Arrangement asks the firmware's map. If the map cannot be read, or does not account for a file of
// one block, which may be cut, the guess is kept: the kernel was found with it, and there is nothing better.
func amd64Arrangement(k *Kernel, file ram.Unarranged, guess ram.Arrangement) (ram.Arrangement, error) {
	spare := uint64(lowReserved)
	if file.Blocks() > 1 {
		spare = leastPlugged - 1
	}
	low, err := k.lowMemory(file.Bytes(), spare)
	switch {
	case err == nil:
		return ram.Arrangement{Low: low}, nil
	case errors.Is(err, errPlugged) && file.Blocks() > 1:
		return guess, err
	}
	return guess, nil
}

// The firmware's map of physical memory, E820 (arch/x86/include/asm/e820/types.h).
const (
	e820Entries = 128 + 3*1024 // E820_MAX_ENTRIES, with the largest number of nodes
	e820RAM     = 1            // E820_TYPE_RAM
	oneMiB      = 1 << 20
	fourGiB     = 1 << 32
	// lowReserved is how much firmware may keep at the end of the memory below 4 GiB: for
	// ACPI tables, or graphics.
	lowReserved = 512 << 20
	// leastPlugged is the least that Linux uses of memory that is plugged in: a section
	// (arch/x86/include/asm/sparsemem.h, SECTION_SIZE_BITS).
	leastPlugged = 128 << 20
)

var (
	errNoMap   = errors.New("the firmware's e820 map does not tell which physical addresses the memory in the file has")
	errPlugged = errors.New("which blocks of the file are where in memory is not known: their sizes do not match the firmware's e820 map. If memory was hotplugged, make the dump with dump-guest-memory (virsh dump --memory-only)")
)

// lowMemory returns how much of a machine's memory, of size bytes, lies below 4 GiB, if the rest
// continues at 4 GiB without a gap. At most spare bytes at the end of the low part may be missing from
// the kernel's RAM. errPlugged says that the map does not add up to the size.
func (k *Kernel) lowMemory(size int64, spare uint64) (int64, error) {
	table, entry := k.types.Layout("e820_table"), k.types.Layout("e820_entry")
	count, entries := table.Field("nr_entries", 4), table.Field("entries")
	start, length, kind := entry.Field("addr", 8), entry.Field("size", 8), entry.Field("type", 4)
	// As the firmware reported it, and not cut by mem= or the like (arch/x86/kernel/e820.c).
	at, err := k.Symbol("e820_table_firmware")
	if err = errors.Join(err, table.Err(), entry.Err()); err != nil {
		return 0, err
	}
	if at, err = k.Pointer(at); err != nil {
		return 0, err
	}
	n, err := k.U32(count.In(at))
	if err != nil {
		return 0, err
	}
	if n > e820Entries {
		return 0, errNoMap
	}
	b, err := k.Bytes(entries.In(at), int(n)*entry.Size)
	if err != nil {
		return 0, err
	}
	var low, high uint64 // end of each part
	begins := false      // whether the map begins as each PC's memory does
	for ; len(b) > 0; b = b[entry.Size:] {
		from, n := start.Uint(b), length.Uint(b)
		if kind.Uint(b) != e820RAM || n > 1<<52 || from > 1<<52 {
			continue
		}
		begins = begins || from < oneMiB
		switch {
		case from+n <= fourGiB:
			low = max(low, from+n)
		default:
			high = max(high, from+n)
		}
	}
	found := uint64(size)
	if high > 0 {
		found -= high - fourGiB
	}
	switch {
	case found <= min(fourGiB, uint64(size)) && found%addr.PageSize == 0 && low <= found && found-low <= spare:
		return int64(found), nil
	case begins:
		return 0, errPlugged
	}
	return 0, errNoMap
}
