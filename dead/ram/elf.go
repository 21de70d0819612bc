package ram

import (
	"encoding/binary"
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// The ELF64 file header, program header and section header (include/uapi/linux/elf.h;
// System V ABI, chapters 4 and 5). Offsets in bytes.
const (
	elfMagic = "\x7fELF"
	elfName  = "ELF core"

	elfHeaderSize = 64
	elfClass      = 4 // EI_CLASS: 2 for 64 bits
	elfData       = 5 // EI_DATA: 1 for little endian

	elfPhdrSize = 56
	elfPhnumX   = 0xffff // PN_XNUM: the number is in sh_info of section 0
	elfShInfo   = 44

	elfTypeCore     = 4   // ET_CORE
	elfMachineX64   = 62  // EM_X86_64
	elfMachineARM64 = 183 // EM_AARCH64

	elfPTLoad = 1
	// elfNowhere is p_paddr of what /proc/kcore maps page by page
	// (fs/proc/kcore.c, KCORE_VMALLOC).
	elfNowhere = ^uint64(0)
	elfPTNote  = 4

	// DUMP_ELF_INCOMPLETE in e_flags says that makedumpfile ran out of space
	// (makedumpfile's IMPLEMENTATION, "The incomplete DUMPFILE").
	elfIncomplete = 1
)

// Bounds for what a core may claim: makedumpfile begins at most one new segment for
// every 256 pages left out (PFN_EXCLUDED).
const (
	elfMaxSegments = 1 << 20
	elfMaxNotes    = 64 << 20
)

// elfHeader is the part of Elf64_Ehdr that matters.
type elfHeader struct {
	phoff, shoff uint64
	flags        uint32
	phnum        uint16
}

// elfSegment is an Elf64_Phdr.
type elfSegment struct {
	kind                                uint32
	off, vaddr, paddr, fileSize, memory uint64
}

// openELF opens the core of a machine. p_paddr says which physical memory a segment
// is of; what a segment has in memory, but not in the file, was excluded.
func openELF(in input) (Memory, error) {
	h, err := readELFHeader(in)
	if err != nil {
		return nil, err
	}
	segments, err := readSegments(in, h)
	if err != nil {
		return nil, err
	}
	pieces, all, cut, err := placeSegments(segments, in.Size())
	if err != nil {
		return nil, err
	}
	incomplete := h.flags&elfIncomplete != 0
	im := image{info: Info{Format: elfName, Incomplete: incomplete, Truncated: cut && !incomplete}}
	_, im.info.Flattened = in.(*flat)
	for _, s := range segments {
		if s.kind != elfPTNote {
			continue
		}
		notes, err := readNotes(in, s)
		if err != nil {
			return nil, err
		}
		if err := im.takeNotes(notes); err != nil {
			return nil, err
		}
	}
	x := layOut(pieces)
	im.setMemory(all, x.bytes())
	return mapExtents(in, x, im)
}

func readELFHeader(in input) (elfHeader, error) {
	var h elfHeader
	b := make([]byte, elfHeaderSize)
	if in.Size() < elfHeaderSize {
		return h, truncated(elfName, elfHeaderSize, in.Size())
	}
	if _, err := in.ReadAt(b, 0); err != nil {
		return h, fmt.Errorf("read ELF header: %w", err)
	}
	le := binary.LittleEndian
	kind, machine := le.Uint16(b[16:]), le.Uint16(b[18:])
	switch {
	case b[elfClass] == 1:
		return h, &FormatError{Format: "32-bit ELF core", Reason: "not supported", Hint: "only kernels for x86-64 and arm64 are"}
	case b[elfClass] != 2:
		return h, malformed(elfName, "class %d is unknown", b[elfClass])
	case b[elfData] != 1:
		return h, malformed(elfName, "it is of a big-endian machine: only x86-64 and arm64 are supported")
	case machine != elfMachineX64 && machine != elfMachineARM64:
		return h, malformed(elfName, "it is of another architecture (e_machine %d): only x86-64 and arm64 are supported", machine)
	case kind != elfTypeCore:
		return h, malformed("ELF file", "it is not a core (e_type %d)", kind)
	case le.Uint16(b[54:]) != elfPhdrSize:
		return h, malformed(elfName, "program headers of %d bytes", le.Uint16(b[54:]))
	}
	h.phoff, h.shoff, h.flags, h.phnum = le.Uint64(b[32:]), le.Uint64(b[40:]), le.Uint32(b[48:]), le.Uint16(b[56:])
	return h, nil
}

func readSegments(in input, h elfHeader) ([]elfSegment, error) {
	count, err := segmentCount(in, h)
	if err != nil {
		return nil, err
	}
	size := uint64(count) * elfPhdrSize
	if err := inside(elfName, in, h.phoff, size); err != nil {
		return nil, err
	}
	b := make([]byte, size)
	if _, err := in.ReadAt(b, int64(h.phoff)); err != nil {
		return nil, fmt.Errorf("read program headers: %w", err)
	}
	segments := make([]elfSegment, count)
	for i := range segments {
		p := b[i*elfPhdrSize:][:elfPhdrSize]
		le := binary.LittleEndian
		segments[i] = elfSegment{
			kind: le.Uint32(p), off: le.Uint64(p[8:]), vaddr: le.Uint64(p[16:]), paddr: le.Uint64(p[24:]),
			fileSize: le.Uint64(p[32:]), memory: le.Uint64(p[40:]),
		}
	}
	return segments, nil
}

func segmentCount(in input, h elfHeader) (uint32, error) {
	count := uint32(h.phnum)
	if h.phnum == elfPhnumX {
		if err := inside(elfName, in, h.shoff, elfShInfo+4); err != nil {
			return 0, err
		}
		var b [4]byte
		if _, err := in.ReadAt(b[:], int64(h.shoff)+elfShInfo); err != nil {
			return 0, fmt.Errorf("read section header: %w", err)
		}
		count = binary.LittleEndian.Uint32(b[:])
	}
	if count == 0 || count > elfMaxSegments {
		return 0, malformed(elfName, "%d program headers", count)
	}
	return count, nil
}

// inside checks that size bytes at off are within the file.
func inside(format string, in input, off, size uint64) error {
	end := off + size
	switch {
	case end < off || end > 1<<62:
		return malformed(format, "%d bytes at offset %#x are impossible", size, off)
	case end > uint64(in.Size()):
		return truncated(format, end, in.Size())
	}
	return nil
}

// placeSegments returns which pieces of the file hold which memory, all the
// memory that there was, and whether the file ends before its segments do.
func placeSegments(segments []elfSegment, size int64) (pieces []extent, all []addr.PhysRange, cut bool, err error) {
	process := true
	for _, s := range segments {
		if s.kind != elfPTLoad || s.paddr == elfNowhere {
			continue
		}
		// A process has its memory at low virtual addresses, and its core says
		// nothing about physical ones.
		process = process && s.paddr == 0 && s.vaddr != 0 && s.vaddr>>63 == 0
		length := max(s.memory, s.fileSize)
		if s.paddr > maxPhys || length > maxPhys-s.paddr {
			return nil, nil, false, malformed(elfName, "a segment of %d bytes at physical address %#x", length, s.paddr)
		}
		r := addr.PhysRange{Start: addr.Phys(s.paddr), End: addr.Phys(s.paddr + length)}
		all = append(all, r)
		end := s.off + s.fileSize
		switch {
		case end < s.off || end > 1<<62:
			return nil, nil, false, malformed(elfName, "a segment at offset %#x", s.off)
		case end > uint64(size):
			s.fileSize, cut = uint64(size)-min(s.off, uint64(size)), true
		}
		if s.fileSize > 0 {
			r.End = r.Start + addr.Phys(s.fileSize)
			pieces = append(pieces, extent{phys: r, off: int64(s.off)})
		}
	}
	switch {
	case len(pieces) == 0 && cut:
		return nil, nil, cut, truncated(elfName, uint64(size)+1, size)
	case len(pieces) == 0:
		return nil, nil, cut, malformed(elfName, "it has no memory")
	case process:
		return nil, nil, cut, malformed(elfName, "it is of a process, not of a machine")
	}
	return pieces, all, cut, nil
}
