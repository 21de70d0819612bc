package ram

import (
	"encoding/binary"
	"fmt"
	"strings"

	"understudy.dev/understudy/dead/addr"
)

// The kdump-compressed format (makedumpfile's IMPLEMENTATION, "The kdump-compressed
// format"; diskdump_mod.h, struct disk_dump_header and struct kdump_sub_header as
// x86-64 and arm64 lay them out). Offsets in bytes.
const (
	kdumpMagic = "KDUMP   "
	kdumpName  = "kdump-compressed file"

	kdumpHeaderSize    = 464
	kdumpMachine       = 12 + 4*65 // utsname.machine
	kdumpSubHeaderSize = 104
	kdumpMaxVersion    = 6
	// kdumpLargeBlock is the largest page size of arm64, which QEMU assumes to be the kernel's
	// (target/arm/arch_dump.c, cpu_get_dump_info).
	kdumpLargeBlock  = 1 << 16
	kdumpMiddleBlock = 1 << 14 // makedumpfile's block size, for a kernel with such pages
	// kdumpNoMachine is the machine that QEMU names for arm64, and since version 10 for every architecture
	// (dump/dump.c, create_header64).
	kdumpNoMachine = "Unknown"

	// kdumpMaxPages bounds the bitmaps in memory to 512 MiB, for 16 TiB of memory.
	kdumpMaxPages = 1 << 32
	// kdumpMaxRanges bounds the number of pieces of memory.
	kdumpMaxRanges = 1 << 20
)

// Bits of status in the header: what it was compressed with, and what befell it
// (diskdump_mod.h, DUMP_DH_*). The four methods of compression also stand in a page's descriptor.
const (
	kdumpZlib       = 0x1
	kdumpLZO        = 0x2
	kdumpSnappy     = 0x4
	kdumpIncomplete = 0x8
	kdumpZstd       = 0x20
)

// kdumpHeader is the part of both headers that matters.
type kdumpHeader struct {
	version                 int32
	block                   uint64 // size of a page, and of the blocks of the file
	status                  uint32
	subHeaderBlocks         uint32
	bitmapBlocks            uint32
	pages                   uint64 // max_mapnr
	level                   uint32 // version 1 and later
	split                   bool   // version 2
	start, end              uint64 // of a split dump: the page frames that this file has
	noteOff, noteSize       uint64 // VMCOREINFO, version 3
	elfNoteOff, elfNoteSize uint64 // version 4
	eraseOff, eraseSize     uint64 // version 5
}

// openKdump opens a kdump-compressed file that is not a part of a split dump.
func openKdump(in input) (Memory, error) {
	k, im, err := readKdump(in)
	if err != nil {
		return nil, err
	}
	if k.header.split {
		return nil, &FormatError{
			Format: "part of a split dump",
			Reason: "it has only some of the memory",
			Hint:   "name all of its parts, one after the other",
		}
	}
	return newPaged(in, k, im), nil
}

// readKdump reads all but the pages of a kdump-compressed file, or of a part of one.
func readKdump(in input) (*kdumpPages, image, error) {
	h, err := readKdumpHeader(in)
	if err != nil {
		return nil, image{}, err
	}
	im := image{info: Info{
		Format:     "kdump-compressed (" + kdumpCodec(h.status) + ")",
		Level:      DumpLevel(h.level),
		LevelKnown: h.version >= 1,
		Incomplete: h.status&kdumpIncomplete != 0,
	}}
	_, im.info.Flattened = in.(*flat)
	if err := readKdumpNotes(in, h, &im); err != nil {
		return nil, im, err
	}
	k, err := readKdumpMaps(in, h, &im)
	if err != nil {
		return nil, im, err
	}
	if !im.info.Incomplete {
		im.info.Truncated, err = k.ended()
	}
	return k, im, err
}

func kdumpCodec(status uint32) string {
	for _, c := range []struct {
		bit  uint32
		name string
	}{{kdumpZlib, "zlib"}, {kdumpLZO, "lzo"}, {kdumpSnappy, "snappy"}, {kdumpZstd, "zstd"}} {
		if status&c.bit != 0 {
			return c.name
		}
	}
	return "not compressed"
}

func readKdumpHeader(in input) (kdumpHeader, error) {
	var h kdumpHeader
	b := make([]byte, kdumpHeaderSize)
	if err := inside(kdumpName, in, 0, addr.PageSize+kdumpSubHeaderSize); err != nil {
		return h, err
	}
	if _, err := in.ReadAt(b, 0); err != nil {
		return h, fmt.Errorf("read kdump header: %w", err)
	}
	le := binary.LittleEndian
	h.version = int32(le.Uint32(b[8:]))
	h.block = uint64(le.Uint32(b[428:]))
	h.status = le.Uint32(b[424:])
	h.subHeaderBlocks = le.Uint32(b[432:])
	h.bitmapBlocks = le.Uint32(b[436:])
	h.pages = uint64(le.Uint32(b[440:]))
	machine, _, _ := strings.Cut(string(b[kdumpMachine:kdumpMachine+65]), "\x00")
	if machine != "x86_64" && machine != "aarch64" && machine != kdumpNoMachine {
		return h, malformed(kdumpName, "it is of another architecture (%.65q): only x86_64 and aarch64 are supported", machine)
	}
	switch {
	case h.version < 0 || h.version > kdumpMaxVersion:
		return h, malformed(kdumpName, "version %d of the header is not understood: only up to %d", h.version, kdumpMaxVersion)
	case h.block != addr.PageSize && (machine == "x86_64" || h.block != kdumpMiddleBlock && h.block != kdumpLargeBlock):
		return h, malformed(kdumpName, "blocks of %d bytes", h.block)
	}
	if err := inside(kdumpName, in, h.block, kdumpSubHeaderSize); err != nil {
		return h, err
	}
	sub := make([]byte, kdumpSubHeaderSize)
	if _, err := in.ReadAt(sub[:kdumpSubSize(h.version)], int64(h.block)); err != nil {
		return h, fmt.Errorf("read kdump sub header: %w", err)
	}
	// Fields that an older version does not have read as zero.
	h.level, h.split = le.Uint32(sub[8:]), le.Uint32(sub[12:]) != 0
	h.start, h.end = le.Uint64(sub[16:]), le.Uint64(sub[24:])
	h.noteOff, h.noteSize = le.Uint64(sub[32:]), le.Uint64(sub[40:])
	h.elfNoteOff, h.elfNoteSize = le.Uint64(sub[48:]), le.Uint64(sub[56:])
	h.eraseOff, h.eraseSize = le.Uint64(sub[64:]), le.Uint64(sub[72:])
	if h.version >= 6 {
		h.start, h.end, h.pages = le.Uint64(sub[80:]), le.Uint64(sub[88:]), le.Uint64(sub[96:])
	}
	return h, h.check()
}

// kdumpSubSize returns how many bytes of the sub header a version has.
func kdumpSubSize(version int32) int {
	return []int{8, 12, 32, 48, 64, 80, kdumpSubHeaderSize}[version]
}

// frame returns the page, as the file counts pages, that holds the byte at pa.
func (h *kdumpHeader) frame(pa addr.Phys) addr.PFN { return addr.PFN(uint64(pa) / h.block) }

// phys returns the address of the first byte of a page.
func (h *kdumpHeader) phys(pfn addr.PFN) addr.Phys { return addr.Phys(uint64(pfn) * h.block) }

func (h *kdumpHeader) check() error {
	switch {
	case h.split && (h.start > h.end || h.end > h.pages):
		return malformed("part of a split dump", "page frames %#x to %#x", h.start, h.end)
	case h.eraseOff != 0 || h.eraseSize != 0:
		return erased(kdumpName)
	case h.pages == 0 || h.pages > kdumpMaxPages:
		return malformed(kdumpName, "%d pages of memory", h.pages)
	case uint64(h.bitmapBlocks)/2*h.block*8 < h.pages:
		return malformed(kdumpName, "two bitmaps of together %d blocks do not suffice for %d pages", h.bitmapBlocks, h.pages)
	}
	return nil
}

// readKdumpNotes finds the VMCOREINFO note: the sub header points to it, or it
// is among the ELF notes that later versions keep.
func readKdumpNotes(in input, h kdumpHeader, im *image) error {
	read := func(off, size uint64) ([]byte, error) {
		if size > elfMaxNotes {
			return nil, malformed(kdumpName, "%d bytes of notes", size)
		}
		if err := inside(kdumpName, in, off, size); err != nil {
			return nil, err
		}
		b := make([]byte, size)
		if _, err := in.ReadAt(b, int64(off)); err != nil {
			return nil, fmt.Errorf("read notes: %w", err)
		}
		return b, nil
	}
	if h.noteOff != 0 && h.noteSize != 0 {
		text, err := read(h.noteOff, h.noteSize)
		if err != nil {
			return err
		}
		im.note = text
	}
	if h.elfNoteOff == 0 || h.elfNoteSize == 0 {
		return nil
	}
	notes, err := read(h.elfNoteOff, h.elfNoteSize)
	if err != nil {
		return err
	}
	return im.takeNotes(notes)
}

// readKdumpMaps reads the bitmaps. The first says which frames are memory, the
// second which of them are in the file: those have descriptors, in ascending
// order. A frame that is memory and not in the file was left out because of its kind.
// Zero pages are not left out: from dump level 1 on, all of them have descriptors
// that refer to one page of zeros (makedumpfile.c, write_kdump_pages_cyclic); in
// files by QEMU they always do (dump/dump.c, write_dump_pages).
func readKdumpMaps(in input, h kdumpHeader, im *image) (*kdumpPages, error) {
	off := h.block * (1 + uint64(h.subHeaderBlocks))
	size := h.block * uint64(h.bitmapBlocks)
	if err := inside(kdumpName, in, off, size); err != nil {
		return nil, err
	}
	all, err := readBitmap(in, int64(off), h.pages)
	if err != nil {
		return nil, err
	}
	dumped, err := readBitmap(in, int64(off+size/2), h.pages)
	if err != nil {
		return nil, err
	}
	var memory []addr.PhysRange
	for _, m := range []*bitmap{all, dumped} {
		for first, end := range m.runs(0, addr.PFN(h.pages)) {
			if len(memory) == kdumpMaxRanges {
				memory = joined(memory)
			}
			if len(memory) == kdumpMaxRanges {
				return nil, malformed(kdumpName, "memory in more than %d pieces", kdumpMaxRanges)
			}
			memory = append(memory, addr.PhysRange{Start: h.phys(first), End: h.phys(end)})
		}
	}
	if dumped.total == 0 {
		return nil, malformed(kdumpName, "it has no memory")
	}
	im.setMemory(memory, dumped.total*h.block)
	k := &kdumpPages{
		in: in, header: h, all: all, dumped: dumped, descs: off + size, cache: newCache(kdumpDescCache),
		count: dumped.total,
	}
	if h.split {
		k.first = dumped.countBelow(h.start)
		k.count = dumped.countBelow(h.end) - k.first
	}
	k.findZeros()
	return k, nil
}
