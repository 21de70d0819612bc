package ramtest

import (
	"encoding/binary"
	"os"

	"understudy.dev/understudy/dead/addr"
)

// le encodes numbers of their own size, little endian.
func le(numbers ...any) []byte {
	var b []byte
	for _, n := range numbers {
		b, _ = binary.Append(b, binary.LittleEndian, n)
	}
	return b
}

// ELF is the format of /proc/vmcore and of makedumpfile -E.
type ELF struct {
	// Note is the text of the VMCOREINFO note; without one, there are no notes.
	Note []byte
	// DirectMap is where the kernel has all memory mapped (page_offset_base).
	DirectMap addr.Virt
	// Excluded chooses frames that segments have in memory, but not in the
	// file; nil for none.
	Excluded func(addr.PFN) bool
	// ManySegments writes the number of segments to the place that is used if it does not
	// fit into 16 bits.
	ManySegments bool
}

type elfSegment struct {
	piece        Piece
	file, memory addr.PhysRange // file is a part of memory, from its start
}

// Write implements Format.
func (e ELF) Write(f *os.File, pieces []Piece) error {
	var segments []elfSegment
	for _, p := range pieces {
		segments = append(segments, e.split(p)...)
	}
	const head, phdr, shdr = 64, 56, 64
	var notes []byte
	if len(e.Note) > 0 {
		notes = append(note("CORE", make([]byte, 336)), note("VMCOREINFO", e.Note)...)
	}
	count := 1 + len(segments)
	notesAt := head + phdr*count + shdr
	pos := int64(notesAt + len(notes))
	pos = (pos + addr.PageSize - 1) &^ (addr.PageSize - 1)

	phnum, shoff, shnum := uint16(count), uint64(0), uint16(0)
	if e.ManySegments {
		phnum, shoff, shnum = 0xffff, uint64(head+phdr*count), 1
	}
	out := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...)
	out = append(out, le(uint16(4), uint16(62), uint32(1), uint64(0), uint64(head), shoff, uint32(0),
		uint16(head), uint16(phdr), phnum, uint16(shdr), shnum, uint16(0))...)
	out = append(out, le(uint32(4), uint32(0), uint64(notesAt), uint64(0), uint64(0),
		uint64(len(notes)), uint64(len(notes)), uint64(4))...)
	for _, s := range segments {
		out = append(out, le(uint32(1), uint32(7), uint64(pos), uint64(e.DirectMap)+uint64(s.memory.Start),
			uint64(s.memory.Start), s.file.Len(), s.memory.Len(), uint64(0))...)
		if err := copyAt(f, pos, s.piece, s.file); err != nil {
			return err
		}
		pos += int64(s.file.Len())
	}
	section := make([]byte, shdr)
	binary.LittleEndian.PutUint32(section[44:], uint32(count)) // sh_info
	out = append(append(out, section...), notes...)
	_, err := f.WriteAt(out, 0)
	return err
}

// split returns a piece as segments, each with frames that are in the file and then
// frames that are excluded.
func (e ELF) split(p Piece) []elfSegment {
	r := p.Range()
	if e.Excluded == nil {
		return []elfSegment{{piece: p, file: r, memory: r}}
	}
	var out []elfSegment
	s := elfSegment{piece: p, file: addr.PhysRange{Start: r.Start, End: r.Start}, memory: addr.PhysRange{Start: r.Start, End: r.Start}}
	for pa := r.Start; pa < r.End; {
		next := min(addr.Pages4K.Phys(addr.Pages4K.PFN(pa)+1), r.End)
		switch {
		case e.Excluded(addr.Pages4K.PFN(pa)):
			s.memory.End = next
		case s.file.End < pa:
			out = append(out, s)
			s = elfSegment{piece: p, file: addr.PhysRange{Start: pa, End: next}, memory: addr.PhysRange{Start: pa, End: next}}
		default:
			s.file.End, s.memory.End = next, next
		}
		pa = next
	}
	return append(out, s)
}
