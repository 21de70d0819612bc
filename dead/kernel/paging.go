package kernel

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ram"
)

// Bits of a page-table entry on x86-64 (Intel SDM volume 3A, 4.5; in the kernel
// arch/x86/include/asm/pgtable_types.h).
const (
	ptePresent  = 1 << 0
	pteLarge    = 1 << 7                     // in a PUD or PMD entry: maps a large page
	pteAddrMask = (1<<52 - 1) &^ (1<<12 - 1) // the physical address
)

// Unmapped says that the kernel's page tables have nothing at an address.
type Unmapped struct {
	Addr  addr.Virt
	Level int // of the table whose entry is missing: 1 is the lowest, 0 means not canonical
}

func (u *Unmapped) Error() string {
	return fmt.Sprintf("translate %v: not mapped at level %d", u.Addr, u.Level)
}

// paging translates virtual addresses by the kernel's page tables. It is safe
// for concurrent use.
type paging struct {
	mem    ram.Memory
	root   addr.Phys // of the top-level table
	levels int       // 4 or 5
	sme    uint64    // the encryption bit in entries, or 0 (NUMBER(sme_mask))

	// Direct maps: physical memory in one piece, where no walk is needed. The
	// offset is zero until it has been checked.
	direct     addr.VirtRange
	cacheSlots [cacheSize]atomic.Pointer[mapping]
}

// mapping is one translated stretch: a page of 4 KiB, 2 MiB or 1 GiB.
type mapping struct {
	virt addr.VirtRange
	phys addr.Phys
}

const cacheSize = 4096 // covers 8 GiB of large pages

// translate returns the physical address of va and how many bytes from there on
// are contiguous in the same page.
func (p *paging) translate(va addr.Virt) (addr.Phys, uint64, error) {
	if p.direct.Contains(va, 1) {
		return addr.Phys(va - p.direct.Start), uint64(p.direct.End - va), nil
	}
	large, small := p.slot(uint64(va)>>21), p.slot(uint64(va)>>12)
	for _, slot := range [2]*atomic.Pointer[mapping]{large, small} {
		if m := slot.Load(); m != nil && m.virt.Contains(va, 1) {
			return m.phys + addr.Phys(va-m.virt.Start), uint64(m.virt.End - va), nil
		}
	}
	pa, size, err := p.walk(va)
	if err != nil {
		return 0, 0, err
	}
	into := addr.Virt(uint64(va) & (size - 1))
	m := &mapping{phys: pa - addr.Phys(into)}
	m.virt.Start = va - into
	m.virt.End = m.virt.Start + addr.Virt(size)
	if m.virt.End > m.virt.Start { // not the very last page, whose end is 2^64
		if size > addr.PageSize {
			large.Store(m)
		} else {
			small.Store(m)
		}
	}
	return pa, size - uint64(into), nil
}

func (p *paging) slot(page uint64) *atomic.Pointer[mapping] {
	return &p.cacheSlots[(page^page>>12)%cacheSize]
}

// forget drops what is remembered: the page tables of a living kernel change.
func (p *paging) forget() {
	for i := range p.cacheSlots {
		p.cacheSlots[i].Store(nil)
	}
}

// walk goes through the page tables and returns the physical address of va and
// the size of the page that maps it, in bytes.
func (p *paging) walk(va addr.Virt) (addr.Phys, uint64, error) {
	bits := 12 + 9*p.levels
	if top := int64(va) >> (bits - 1); top != 0 && top != -1 {
		return 0, 0, &Unmapped{Addr: va}
	}
	table := p.root
	for level := p.levels; level >= 1; level-- {
		shift := 12 + 9*(level-1)
		slot := addr.Phys(uint64(va) >> shift & 511 * 8)
		b, err := p.mem.View(table+slot, 8)
		if err != nil {
			return 0, 0, fmt.Errorf("translate %v: read page table of level %d: %w", va, level, err)
		}
		entry := binary.LittleEndian.Uint64(b) &^ p.sme
		if entry&ptePresent == 0 {
			return 0, 0, &Unmapped{Addr: va, Level: level}
		}
		size := uint64(1) << shift
		if level == 1 || (level <= 3 && entry&pteLarge != 0) {
			// The lower bits of a large page's entry are not address: bit 12
			// is its PAT bit.
			base := addr.Phys(entry & pteAddrMask &^ (size - 1))
			return base + addr.Phys(uint64(va)&(size-1)), size, nil
		}
		table = addr.Phys(entry & pteAddrMask)
	}
	return 0, 0, &Unmapped{Addr: va}
}
