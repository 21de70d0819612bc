package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/addr"
)

// section is a piece of memory whose page structures are contiguous, as with
// CONFIG_SPARSEMEM and without CONFIG_SPARSEMEM_VMEMMAP.
type section struct {
	pages addr.VirtRange // addresses of the page structures
	first addr.PFN
}

// Constants for struct mem_section (include/linux/mmzone.h).
const (
	sectionHasMap  = 1 << 1 // in section_mem_map: SECTION_HAS_MEM_MAP
	sectionBits    = 27     // SECTION_SIZE_BITS of x86-64, if the note does not have it (before 5.13)
	maxSectionBits = 36
	maxSections    = 1 << 20
)

// memSections finds the sections of memory, in the order of the addresses of their page structures.
// They are in a table of tables, each of which is a page large (CONFIG_SPARSEMEM_EXTREME). section_mem_map
// is where the structure of frame 0 would be, if all structures were contiguous with those of the section.
// It is aligned to a page; the bits below that are flags (mm/sparse.c, sparse_encode_mem_map).
func (k *Kernel) memSections() ([]section, error) {
	roots, err := k.note.symbol("mem_section")
	if err != nil {
		return nil, err
	}
	count, err1 := k.note.length("mem_section")
	l := k.types.Layout("mem_section")
	mapped := l.Field("section_mem_map", 8)
	bits, err2 := k.note.number("SECTION_SIZE_BITS")
	if errors.Is(err2, ErrNotFound) {
		bits, err2 = sectionBits, nil
	}
	if err := errors.Join(err1, err2, l.Err()); err != nil {
		return nil, err
	}
	if bits <= int64(k.unit) || bits > maxSectionBits || l.Size < 8 || l.Size > addr.PageSize || count > maxSections {
		return nil, fmt.Errorf("%d tables of sections of 2^%d bytes", count, bits)
	}
	each := addr.PFN(1) << (bits - int64(k.unit))
	perTable := int(k.unit.Size()) / l.Size
	last := k.unit.PFN(k.top())
	var found []section
	for n := 0; n < count && addr.PFN(n*perTable)*each <= last; n++ {
		table, err := k.Pointer(roots + addr.Virt(8*n))
		if err != nil {
			return nil, err
		}
		if table == 0 {
			continue
		}
		b, err := k.Bytes(table, perTable*l.Size)
		if err != nil {
			return nil, err
		}
		for i := range perTable {
			v := mapped.Uint(b[i*l.Size:][:l.Size])
			if v&sectionHasMap == 0 {
				continue
			}
			s := section{first: addr.PFN(n*perTable+i) * each}
			s.pages.Start = addr.Virt(v&^(addr.PageSize-1)) + addr.Virt(uint64(s.first)*uint64(k.pageSize))
			s.pages.End = s.pages.Start + addr.Virt(uint64(each)*uint64(k.pageSize))
			if !s.pages.Start.IsKernel() || s.pages.End < s.pages.Start {
				return nil, fmt.Errorf("the page structures of section %d are at %v", n*perTable+i, s.pages)
			}
			found = append(found, s)
		}
	}
	return found, k.checkSections(found)
}

// checkSections sorts the sections. None may overlap another, and the one with the note must be there.
func (k *Kernel) checkSections(all []section) error {
	slices.SortFunc(all, func(a, b section) int { return cmp.Compare(a.pages.Start, b.pages.Start) })
	for i := range all {
		if i > 0 && all[i].pages.Start < all[i-1].pages.End {
			return fmt.Errorf("page structures are at %v and at %v", all[i-1].pages, all[i].pages)
		}
	}
	for _, s := range all {
		if at := s.page(k, k.unit.PFN(k.notePA)); s.pages.Contains(at, 1) {
			_, err := k.Physical(at)
			return err
		}
	}
	return errors.New("no section of mem_section has the page of the vmcoreinfo note")
}

// page returns the address of the page structure of a frame, if the section has it.
func (s *section) page(k *Kernel, pfn addr.PFN) addr.Virt {
	return s.pages.Start + addr.Virt(uint64(pfn-s.first)*uint64(k.pageSize))
}

// sectionOf returns the section that has the page structure at an address.
func (k *Kernel) sectionOf(va addr.Virt) (*section, bool) {
	i, _ := slices.BinarySearchFunc(k.sections, va, func(s section, va addr.Virt) int {
		if s.pages.End <= va {
			return -1
		}
		return 1
	})
	if i == len(k.sections) || !k.sections[i].pages.Contains(va, 1) {
		return nil, false
	}
	return &k.sections[i], true
}
