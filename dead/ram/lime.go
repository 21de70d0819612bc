package ram

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/addr"
)

// Captures by LiME (docs/README.md of 504ensicsLabs/LiME, "LiME Memory Range Header
// Version 1 Specification") and AVML (src/image.rs of microsoft/avml, struct Header)
// are a sequence of memory ranges, each preceded by a header: magic, version,
// first and last address, eight zeros. AVML writes LiME's format if it does not
// compress; otherwise it writes version 2, with its own magic.
//
// AVML leaves out stretches of 16 MiB that are all zeros, and the file does not
// say so: here they are absent.
const (
	limeMagic = "EMiL"
	limeName  = "LiME capture"

	avmlMagic = "AVML"
	avmlName  = "AVML capture"

	limeHeaderSize = 32
	limeVersion    = 1
	avmlVersion    = 2

	// limeMaxRanges bounds the number of ranges: AVML writes one for each 16 MiB.
	limeMaxRanges = 1 << 22
)

// readLiMEHeader reads the header of the range at an offset.
func readLiMEHeader(in input, off int64, name, magic string, version uint32) (addr.PhysRange, error) {
	var r addr.PhysRange
	if err := inside(name, in, uint64(off), limeHeaderSize); err != nil {
		return r, err
	}
	var b [limeHeaderSize]byte
	if _, err := in.ReadAt(b[:], off); err != nil {
		return r, fmt.Errorf("read range header: %w", err)
	}
	le := binary.LittleEndian
	first, last := le.Uint64(b[8:]), le.Uint64(b[16:])
	switch got := le.Uint32(b[4:]); {
	case string(b[:4]) != magic:
		return r, malformed(name, "no header at offset %#x, where the next range should begin", off)
	case got != version:
		return r, malformed(name, "version %d is not understood", got)
	case last < first || last >= maxPhys:
		return r, malformed(name, "a range from %#x to %#x", first, last)
	case le.Uint64(b[24:]) != 0:
		return r, malformed(name, "unknown bits in the header at offset %#x", off)
	}
	return addr.PhysRange{Start: addr.Phys(first), End: addr.Phys(last + 1)}, nil
}

// openLiME opens a capture that is not compressed.
func openLiME(in input) (Memory, error) {
	var x extents
	for off := int64(0); off < in.Size(); {
		r, err := readLiMEHeader(in, off, limeName, limeMagic, limeVersion)
		if err != nil {
			return nil, err
		}
		off += limeHeaderSize
		if err := inside(limeName, in, uint64(off), r.Len()); err != nil {
			return nil, err
		}
		if len(x) == limeMaxRanges {
			return nil, malformed(limeName, "more than %d ranges", limeMaxRanges)
		}
		x = append(x, extent{phys: r, off: off})
		off += int64(r.Len())
	}
	if err := x.sort(limeName); err != nil {
		return nil, err
	}
	im := image{info: Info{Format: limeName}}
	im.setMemory(x.ranges(), x.bytes())
	return mapExtents(in, x, im)
}

// sort puts ranges in order. It is an error if two of them hold the same memory.
func (x extents) sort(name string) error {
	slices.SortFunc(x, func(a, b extent) int { return cmp.Compare(a.phys.Start, b.phys.Start) })
	for i := 1; i < len(x); i++ {
		if x[i].phys.Start < x[i-1].phys.End {
			return malformed(name, "%v and %v overlap", x[i-1].phys, x[i].phys)
		}
	}
	return nil
}
