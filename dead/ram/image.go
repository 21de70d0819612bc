package ram

import (
	"cmp"
	"iter"
	"slices"
	"sort"

	"understudy.dev/understudy/dead/addr"
)

// image is what the memories of all formats have in common.
type image struct {
	info   Info
	memory []addr.PhysRange // ascending, disjoint; adjacent ranges are joined
	note   []byte           // text of the VMCOREINFO note; nil without one
	notes  []byte           // all ELF notes, in formats that have them
}

func (im *image) Ranges() []addr.PhysRange { return slices.Clone(im.memory) }

func (im *image) Info() Info { return im.info }

// describe changes what Info returns. It is called only while the memory is being opened.
func (im *image) describe(change func(*Info)) { change(&im.info) }

func (im *image) VMCoreInfo() ([]byte, bool) { return im.note, im.note != nil }

// fault returns the Fault for the n bytes at pa, of which the one at absent is the first
// that is not in the image.
func (im *image) fault(pa addr.Phys, n int, absent addr.Phys) *Fault {
	f := &Fault{Addr: absent, Len: n - int(absent-pa)}
	f.Excluded = n > 0 && inRanges(im.memory, absent)
	return f
}

// setMemory records what memory the machine has and how much of it is in the
// image.
func (im *image) setMemory(all []addr.PhysRange, present uint64) {
	im.memory = joined(all)
	var total uint64
	for _, r := range im.memory {
		total += r.Len()
	}
	im.info.Present, im.info.Excluded = present, total-min(present, total)
}

func inRanges(all []addr.PhysRange, pa addr.Phys) bool {
	i := sort.Search(len(all), func(i int) bool { return all[i].End > pa })
	return i < len(all) && all[i].Start <= pa
}

// joined returns the ranges in ascending order. Ranges that overlap or touch are
// joined, and empty ones are left out.
func joined(all []addr.PhysRange) []addr.PhysRange {
	sorted := slices.Clone(all)
	slices.SortFunc(sorted, func(a, b addr.PhysRange) int {
		return cmp.Compare(a.Start, b.Start)
	})
	out := sorted[:0]
	for _, r := range sorted {
		switch last := len(out) - 1; {
		case r.Len() == 0:
		case last >= 0 && r.Start <= out[last].End:
			out[last].End = max(out[last].End, r.End)
		default:
			out = append(out, r)
		}
	}
	return out
}

// extent is one piece of physical memory and where it lies in the file.
type extent struct {
	phys addr.PhysRange
	off  int64
}

// end returns where the extent ends in the file.
func (e extent) end() int64 { return e.off + int64(e.phys.Len()) }

// extents are ascending in physical memory, disjoint and not empty.
type extents []extent

// find returns the index of the extent that holds pa, or -1.
func (x extents) find(pa addr.Phys) int {
	lo, hi := 0, len(x)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if x[mid].phys.End <= pa {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo < len(x) && x[lo].phys.Start <= pa {
		return lo
	}
	return -1
}

// present reports whether all of the n bytes at pa are there, and otherwise the
// address of the first that is not.
func (x extents) present(pa addr.Phys, n int) (absent addr.Phys, ok bool) {
	if n < 0 {
		return pa, false
	}
	end := pa + addr.Phys(n)
	if end < pa {
		end = ^addr.Phys(0) // beyond all memory
	}
	i := x.find(pa)
	if i < 0 {
		return pa, false
	}
	for at := pa; ; i++ {
		if i == len(x) || x[i].phys.Start > at {
			return at, false
		}
		if at = x[i].phys.End; at >= end {
			return 0, true
		}
	}
}

// assemble copies the n bytes at pa, all of which are present, into one slice.
func (x extents) assemble(pa addr.Phys, n int, read func(dst []byte, off int64) error) ([]byte, error) {
	out := make([]byte, n)
	rest := out
	for i := x.find(pa); len(rest) > 0; i++ {
		e := x[i]
		part := min(uint64(len(rest)), uint64(e.phys.End-pa))
		if err := read(rest[:part], e.off+int64(pa-e.phys.Start)); err != nil {
			return nil, &Fault{Addr: pa, Len: len(rest), Cause: err}
		}
		rest, pa = rest[part:], pa+addr.Phys(part)
	}
	return out, nil
}

// within yields the parts of extents that lie in r.
func (x extents) within(r addr.PhysRange) iter.Seq[extent] {
	return func(yield func(extent) bool) {
		first := sort.Search(len(x), func(i int) bool { return x[i].phys.End > r.Start })
		for _, e := range x[first:] {
			lo, hi := max(r.Start, e.phys.Start), min(r.End, e.phys.End)
			if lo >= hi {
				return
			}
			part := extent{phys: addr.PhysRange{Start: lo, End: hi}, off: e.off + int64(lo-e.phys.Start)}
			if !yield(part) {
				return
			}
		}
	}
}

// joinedSeq joins neighbours that touch in an ascending sequence.
func joinedSeq(seq iter.Seq[addr.PhysRange]) iter.Seq[addr.PhysRange] {
	return func(yield func(addr.PhysRange) bool) {
		var last addr.PhysRange
		for r := range seq {
			if last.Len() > 0 && r.Start == last.End {
				last.End = r.End
				continue
			}
			if last.Len() > 0 && !yield(last) {
				return
			}
			last = r
		}
		if last.Len() > 0 {
			yield(last)
		}
	}
}

func (x extents) ranges() []addr.PhysRange {
	out := make([]addr.PhysRange, len(x))
	for i, e := range x {
		out[i] = e.phys
	}
	return out
}

func (x extents) bytes() uint64 {
	var n uint64
	for _, e := range x {
		n += e.phys.Len()
	}
	return n
}

// layOut sorts pieces of a file into extents. Where several pieces hold the same
// memory, as in a dump that lists virtual mappings, the one that starts first
// counts. Pieces that continue each other are joined.
func layOut(pieces []extent) extents {
	sorted := slices.Clone(pieces)
	slices.SortStableFunc(sorted, func(a, b extent) int { return cmp.Compare(a.phys.Start, b.phys.Start) })
	out := sorted[:0]
	var top addr.Phys
	for _, e := range sorted {
		if e.phys.Start < top {
			e.off += int64(top - e.phys.Start)
			e.phys.Start = top
		}
		if e.phys.Len() == 0 {
			continue
		}
		top = e.phys.End
		if last := len(out) - 1; last >= 0 && out[last].phys.End == e.phys.Start && out[last].end() == e.off {
			out[last].phys.End = e.phys.End
			continue
		}
		out = append(out, e)
	}
	return out
}
