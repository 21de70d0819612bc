package kernel

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ram"
)

// Unmapped says that the kernel's page tables map nothing at an address.
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
	mem      ram.Memory
	root     addr.Phys  // of the top-level table
	rootVirt addr.Virt  // where that table is in the kernel's image
	unit     addr.Pages // of the smallest pages, and of the tables
	levels   int
	bits     int // number of bits of an address that the tables cover

	// Only addresses below low, and from high on, can be mapped.
	low, high addr.Virt
	// decode reads an entry of a table of a level, 1 being the lowest; false if it maps nothing.
	decode func(entry uint64, level int) (descriptor, bool)

	// direct is physical memory mapped in one piece, where no walk is needed. It is
	// empty until it has been checked.
	direct     linear
	cacheSlots [cacheSize]atomic.Pointer[mapping]
}

// descriptor is what an entry of a page table says: where the next table or the page is.
type descriptor struct {
	phys addr.Phys // for a page, bits below its size mean nothing
	page bool
}

// mapping is one translated page: a base page, or a large one.
type mapping struct {
	virt addr.VirtRange
	phys addr.Phys
}

const cacheSize = 4096 // covers 8 GiB of large pages

// translate returns the physical address of va and how many bytes from there on
// are contiguous in the same page.
func (p *paging) translate(va addr.Virt) (addr.Phys, uint64, error) {
	if p.direct.virt.Contains(va, 1) {
		return p.direct.translate(va), uint64(p.direct.virt.End - va), nil
	}
	large, small := p.slot(uint64(va)>>p.shift(2)), p.slot(uint64(va)>>p.unit)
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
	if m.virt.End > m.virt.Start { // except for the very last page, whose end is 2^64
		if size > uint64(p.unit.Size()) {
			large.Store(m)
		} else {
			small.Store(m)
		}
	}
	return pa, size - uint64(into), nil
}

// shift returns how much memory an entry of a level maps, as a power of two: a table is as large as a
// base page, and has entries of 8 bytes.
func (p *paging) shift(level int) int { return int(p.unit) + (int(p.unit)-3)*(level-1) }

func (p *paging) slot(page uint64) *atomic.Pointer[mapping] {
	return &p.cacheSlots[(page^page>>12)%cacheSize]
}

// forget drops the cached translations: the page tables of a living kernel change.
func (p *paging) forget() {
	for i := range p.cacheSlots {
		p.cacheSlots[i].Store(nil)
	}
}

// walk goes through the page tables and returns the physical address of va and
// the size of the page that maps it, in bytes.
func (p *paging) walk(va addr.Virt) (addr.Phys, uint64, error) {
	if va >= p.low && va < p.high {
		return 0, 0, &Unmapped{Addr: va}
	}
	table := p.root
	for level := p.levels; level >= 1; level-- {
		shift := p.shift(level)
		// The table at the top may have fewer entries than the others.
		slot := addr.Phys(uint64(va) & (1<<p.bits - 1) >> shift & (1<<(p.unit-3) - 1) * 8)
		b, err := p.mem.View(table+slot, 8)
		if err != nil {
			return 0, 0, fmt.Errorf("translate %v: read page table of level %d: %w", va, level, err)
		}
		d, ok := p.decode(binary.LittleEndian.Uint64(b), level)
		if !ok {
			return 0, 0, &Unmapped{Addr: va, Level: level}
		}
		if size := uint64(1) << shift; d.page {
			return d.phys&^addr.Phys(size-1) + addr.Phys(uint64(va)&(size-1)), size, nil
		}
		table = d.phys
	}
	return 0, 0, &Unmapped{Addr: va}
}
