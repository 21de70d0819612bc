package metal

import (
	"encoding/binary"
	"slices"
)

// Bits of a page table entry (SDM volume 3, 4.5).
const (
	pagePresent = 1 << 0
	pageWrite   = 1 << 1
	pageLarge   = 1 << 7
)

// paging is a set of page tables for an address below 4 GiB. It grows page by page.
type paging struct {
	at uint64
	b  []byte
}

// table appends an empty table, and returns its offset.
func (p *paging) table() uint64 {
	p.b = append(p.b, make([]byte, pageBytes)...)
	return uint64(len(p.b)) - pageBytes
}

func (p *paging) set(table, index, entry uint64) {
	binary.LittleEndian.PutUint64(p.b[table+8*index:], entry)
}

// next returns the offset of the table that an entry points to, and makes that table if
// need be.
func (p *paging) next(table, index uint64) uint64 {
	if e := binary.LittleEndian.Uint64(p.b[table+8*index:]); e != 0 {
		return e&^0xfff - p.at
	}
	next := p.table()
	p.set(table, index, (p.at+next)|pagePresent|pageWrite)
	return next
}

// directory is the page directory of a virtual address, below a root of four levels.
func (p *paging) directory(root, va uint64) uint64 {
	return p.next(p.next(root, va>>39&511), va>>30&511)
}

// page maps a page of 4 KiB, below a root of four levels.
func (p *paging) page(root, va, pa uint64) {
	p.set(p.next(p.directory(root, va), va>>21&511), va>>12&511, pa&^0xfff|pagePresent|pageWrite)
}

// identity returns page tables, for that address below 4 GiB, that identity-map every GiB
// which one of the ranges touches, in pages of 2 MiB. The root comes first.
func identity(at uint64, ranges ...Range) []byte {
	const gib = 1 << 30
	var gibs []uint64
	for _, r := range ranges {
		for g := r.Start / gib; g <= (r.End-1)/gib; g++ {
			gibs = append(gibs, g)
		}
	}
	slices.Sort(gibs)
	gibs = slices.Compact(gibs)
	p := &paging{at: at}
	root := p.table()
	for _, g := range gibs {
		directory := p.directory(root, g*gib)
		for i := range uint64(512) {
			p.set(directory, i, g*gib+i*huge|pagePresent|pageWrite|pageLarge)
		}
	}
	return p.b
}
