package ram

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"

	"understudy.dev/understudy/dead/addr"
)

// A migration stream of QEMU, as migrate to exec: or file:, savevm and virsh save write it
// (migration/savevm.c, qemu_savevm_state_header and vmstate_configuration;
// docs/devel/migration). Numbers are big endian. After magic and version there are sections,
// each of a type. Only its device knows what a section has inside: so everything before the end
// of "ram" must be known, and what comes after it is not looked at.
const (
	streamMagic   = "QEVM"
	streamName    = "QEMU migration stream"
	streamVersion = 3

	streamStart   = 0x01 // QEMU_VM_SECTION_START: number, name, instance, version
	streamPart    = 0x02 // QEMU_VM_SECTION_PART: number
	streamEnd     = 0x03 // QEMU_VM_SECTION_END: number
	streamFull    = 0x04 // QEMU_VM_SECTION_FULL: as START
	streamSub     = 0x05 // QEMU_VM_SUBSECTION
	streamConfig  = 0x07 // QEMU_VM_CONFIGURATION
	streamCommand = 0x08 // QEMU_VM_COMMAND
	streamFooter  = 0x7e // QEMU_VM_SECTION_FOOTER: number

	streamRAM        = "ram"
	streamRAMVersion = 4
)

// Commands (migration/savevm.h, enum qemu_vm_cmd) that do not change what follows.
const (
	streamReturnPath = 1
	streamPing       = 2
	streamSwitchover = 11 // since QEMU 10
)

// Flags of a record of RAM, in the low bits of its offset in a block (migration/ram.c,
// RAM_SAVE_FLAG_*).
const (
	pageZero     = 0x02 // a byte follows, with which the page is filled
	pageSizes    = 0x04 // the blocks follow; the offset is their total size
	pageWhole    = 0x08
	pageEnd      = 0x10 // end of the section
	pageSame     = 0x20 // same block as the one before; otherwise its name follows
	pageXBZRLE   = 0x40
	pageHook     = 0x80
	pageCompress = 0x100
	pageMultifd  = 0x200
	pageFlags    = 0xfff
)

// streamMaxBlocks bounds the number of blocks of RAM and of devices. A name has at most 255 bytes.
const streamMaxBlocks = 4096

// capture is what a stream says about memory.
type capture struct {
	r      *cursor
	blocks []streamBlock
	last   int // block of the page before; -1 means none
	pages  []streamPage
}

// streamBlock is a piece of a machine's memory: RAM, or memory of a device.
type streamBlock struct {
	name string
	size uint64
}

// streamPage is a page that was sent. A later one replaces an earlier one.
type streamPage struct {
	block int32
	fill  int16 // the byte that the page is filled with, or -1
	frame uint64
	at    int64 // in the file
}

// openStream opens a migration stream. It reads all of it once, and makes an index.
func openStream(in input) (Memory, error) {
	c := &capture{r: newCursor(in, 0), last: -1}
	if err := c.read(); err != nil {
		return nil, err
	}
	if err := c.r.err; err != nil {
		return nil, cutStream(err)
	}
	ram, size, err := c.main()
	if err != nil {
		return nil, err
	}
	p := &sentPages{in: in, pages: c.index(ram)}
	return p.memory(size, len(ram))
}

// cutStream returns the error for a stream without its end. Until the end QEMU sends pages again that
// the guest has changed meanwhile, so that the pages in such a stream may be older than they should be.
func cutStream(err error) error {
	if err != io.EOF {
		return fmt.Errorf("read %s: %w", streamName, err)
	}
	return &FormatError{
		Format: streamName,
		Reason: "truncated: it ends before the memory does, and may have old pages",
		Hint:   "copy it again, or look whether the disk was full when it was made",
	}
}

func (c *capture) read() error {
	c.r.skip(int64(len(streamMagic)))
	if version := c.r.u32(); c.r.err == nil && version != streamVersion {
		return malformed(streamName, "version %d is not understood", version)
	}
	id, known := uint32(0), false
	for c.r.err == nil {
		kind := c.r.u8()
		switch kind {
		case streamConfig:
			if err := c.configuration(); err != nil {
				return err
			}
			continue
		case streamCommand:
			command, n := c.r.u16(), c.r.u16()
			switch command {
			case streamReturnPath, streamPing, streamSwitchover:
				c.r.skip(int64(n))
			default:
				if c.r.err == nil {
					return malformed(streamName, "command %d is not understood", command)
				}
			}
			continue
		case streamStart, streamFull, streamPart, streamEnd:
		default:
			if c.r.err != nil {
				return nil
			}
			return malformed(streamName, "a section of type %#x at offset %#x", kind, c.r.at-1)
		}
		section := c.r.u32()
		if kind == streamStart || kind == streamFull {
			if err := c.begin(); err != nil {
				return err
			}
			id, known = section, true
		}
		if c.r.err == nil && (!known || section != id) {
			return malformed(streamName, "section %d has no beginning", section)
		}
		if err := c.records(); err != nil {
			return err
		}
		if c.r.err == nil && kind == streamEnd {
			return nil
		}
		if b := c.r.peek(); b == streamFooter {
			if c.r.skip(1); c.r.u32() != id && c.r.err == nil {
				return malformed(streamName, "the footer at offset %#x is of another section", c.r.at-5)
			}
		}
	}
	return nil
}

// begin reads the head of a section, which must be that of RAM.
func (c *capture) begin() error {
	name := c.r.name()
	instance, version := c.r.u32(), c.r.u32()
	switch {
	case c.r.err != nil:
	case name != streamRAM:
		return &FormatError{
			Format: streamName,
			Reason: fmt.Sprintf("section %q comes before the end of the memory, and only QEMU knows how long it is", printed(name)),
			Hint:   dumpHint,
		}
	case instance != 0 || version != streamRAMVersion:
		return malformed(streamName, "version %d of RAM is not understood", version)
	}
	return nil
}

// configuration reads which machine the stream is of, and what is special about the migration.
func (c *capture) configuration() error {
	c.r.skip(int64(c.r.u32()))
	for c.r.peek() == streamSub {
		c.r.u8()
		name := c.r.name()
		c.r.u32() // version
		switch name {
		case "configuration/capabilities":
			for n := c.r.u32(); n > 0 && c.r.err == nil; n-- {
				if capability := c.r.name(); c.r.err == nil {
					return &FormatError{Format: streamName, Reason: fmt.Sprintf("it was made with %q, which is not understood", printed(capability)), Hint: dumpHint}
				}
			}
		case "configuration/target-page-bits":
			if bits := c.r.u32(); c.r.err == nil && 1<<bits != addr.PageSize {
				return malformed(streamName, "pages of 2^%d bytes", bits)
			}
		case "configuration/uuid":
			c.r.skip(16)
		default:
			return malformed(streamName, "%q is not understood", printed(name))
		}
	}
	return nil
}

// records reads the records of a section of RAM.
func (c *capture) records() error {
	for c.r.err == nil {
		head := c.r.u64()
		off, flags := head&^uint64(pageFlags), head&pageFlags
		switch kind := flags &^ pageSame; {
		case c.r.err != nil:
		case flags == pageEnd:
			return nil
		case flags == pageSizes:
			if err := c.sizes(off); err != nil {
				return err
			}
		case kind == pageZero || kind == pageWhole:
			if err := c.page(off, flags); err != nil {
				return err
			}
		default:
			return refusedRecord(flags, c.r.at-8)
		}
	}
	return nil
}

func refusedRecord(flags uint64, at int64) error {
	for _, f := range []struct {
		bit  uint64
		name string
	}{{pageXBZRLE, "xbzrle"}, {pageCompress, "compress"}, {pageMultifd, "multifd"}, {pageHook, "rdma"}} {
		if flags&f.bit != 0 {
			return &FormatError{Format: streamName, Reason: "it was made with the capability " + f.name, Hint: "make it again without that, or " + dumpHint}
		}
	}
	return malformed(streamName, "a page with flags %#x at offset %#x", flags, at)
}

// sizes reads the list of blocks.
func (c *capture) sizes(total uint64) error {
	if len(c.blocks) > 0 {
		return malformed(streamName, "the blocks of memory are listed twice")
	}
	for total > 0 && c.r.err == nil {
		b := streamBlock{c.r.name(), c.r.u64()}
		switch {
		case c.r.err != nil:
		case len(c.blocks) == streamMaxBlocks:
			return malformed(streamName, "more than %d blocks of memory", streamMaxBlocks)
		case b.size == 0 || b.size > total || b.size%addr.PageSize != 0:
			return malformed(streamName, "block %q has %d bytes", printed(b.name), b.size)
		}
		total -= b.size
		c.blocks = append(c.blocks, b)
	}
	return nil
}

func (c *capture) page(off, flags uint64) error {
	if flags&pageSame == 0 {
		name := c.r.name()
		c.last = slices.IndexFunc(c.blocks, func(b streamBlock) bool { return b.name == name })
	}
	if c.r.err != nil {
		return nil
	}
	if c.last < 0 || off >= c.blocks[c.last].size {
		return malformed(streamName, "a page at %#x of no block of memory", off)
	}
	p := streamPage{block: int32(c.last), fill: -1, frame: off / addr.PageSize, at: c.r.at}
	if flags&pageZero != 0 {
		p.fill = int16(c.r.u8())
	} else {
		c.r.skip(addr.PageSize)
	}
	c.pages = append(c.pages, p)
	return nil
}

// deviceBlocks are parts of the names of blocks of x86 machines that are not RAM: firmware, tables,
// and memory of devices, which is named by their place on the bus.
var deviceBlocks = []string{"pc.bios", "pc.rom", ".rom", "/rom@", "vram", ".vgavmem", "flash", ":", "vga", "qxl"}

// main finds the blocks that are the machine's RAM, in their order, and how many bytes they
// have. Several blocks are of NUMA nodes, which QEMU and libvirt number in the names.
func (c *capture) main() (ram []int, size uint64, err error) {
	for i, b := range c.blocks {
		if !slices.ContainsFunc(deviceBlocks, func(part string) bool { return strings.Contains(b.name, part) }) {
			ram = append(ram, i)
			size += b.size
		}
	}
	stem := func(i int) (string, int) {
		name := c.blocks[i].name
		digits := len(name) - len(strings.TrimRight(name, "0123456789"))
		number := 0
		if digits > 6 {
			return name, 0
		}
		for _, d := range name[len(name)-digits:] {
			number = 10*number + int(d-'0')
		}
		return name[:len(name)-digits], number
	}
	slices.SortStableFunc(ram, func(a, b int) int {
		_, left := stem(a)
		_, right := stem(b)
		return cmp.Compare(left, right)
	})
	var names []string
	ordered := true
	for n, i := range ram {
		names = append(names, printed(c.blocks[i].name))
		name, number := stem(i)
		first, _ := stem(ram[0])
		ordered = ordered && name == first && (len(ram) == 1 || number == n)
	}
	switch {
	case size > maxPhys:
		return nil, 0, malformed(streamName, "%d bytes of memory", size)
	case len(ram) == 0:
		return nil, 0, malformed(streamName, "it has no memory")
	case !ordered:
		return nil, 0, &FormatError{
			Format: streamName,
			Reason: fmt.Sprintf("which of its blocks are where in memory is not known: %s", strings.Join(names, ", ")),
			Hint:   dumpHint,
		}
	}
	return ram, size, nil
}

// index returns the newest version of each page of RAM, ascending, with frames counted
// through all blocks of RAM.
func (c *capture) index(ram []int) []streamPage {
	first := make(map[int32]uint64, len(ram))
	frames := uint64(0)
	for _, i := range ram {
		first[int32(i)] = frames
		frames += c.blocks[i].size / addr.PageSize
	}
	out := c.pages[:0]
	for _, p := range c.pages {
		if base, ok := first[p.block]; ok {
			p.frame += base
			out = append(out, p)
		}
	}
	// What was sent later is later in the stream.
	slices.SortFunc(out, func(a, b streamPage) int {
		return cmp.Or(cmp.Compare(a.frame, b.frame), cmp.Compare(b.at, a.at))
	})
	return slices.CompactFunc(out, func(a, b streamPage) bool { return a.frame == b.frame })
}

// sentPages are the pages of a RAM file that was sent as a stream.
type sentPages struct {
	in      input
	pages   []streamPage // ascending
	extents extents
}

// memory arranges the pages as in the RAM file that they come from.
func (s *sentPages) memory(size uint64, blocks int) (Memory, error) {
	if size == 0 || len(s.pages) == 0 {
		return nil, malformed(streamName, "it has no memory")
	}
	im := image{info: Info{Format: streamName}}
	r := &raw{arrangeable: &sent{paged: newPaged(s.in, s, im), pages: s}, size: int64(size)}
	first := r.Arranged(guesses(int64(size))[0]).(borrowed)
	return &raw{arrangeable: first.arrangeable, size: int64(size), blocks: blocks}, nil
}

// sent is memory that is stored as pages in a stream.
type sent struct {
	*paged
	pages *sentPages
}

func (s *sent) arranged(x extents, im image) Memory {
	p := &sentPages{in: s.pages.in, pages: s.pages.pages, extents: x}
	im.setMemory(x.ranges(), uint64(len(p.pages))*addr.PageSize)
	return borrowed{&sent{paged: newPaged(p.in, p, im), pages: p}}
}

// index returns the index of the page that holds the byte at pa.
func (s *sentPages) index(pa addr.Phys) (int, bool) {
	i := s.extents.find(pa)
	if i < 0 {
		return 0, false
	}
	e := s.extents[i]
	frame := uint64(e.off+int64(pa-e.phys.Start)) / addr.PageSize
	return slices.BinarySearchFunc(s.pages, frame, func(p streamPage, frame uint64) int { return cmp.Compare(p.frame, frame) })
}

func (s *sentPages) find(pa addr.Phys) (int64, addr.PhysRange, bool) {
	i, ok := s.index(pa)
	start := pa &^ (addr.PageSize - 1)
	return int64(i), addr.PhysRange{Start: start, End: start + addr.PageSize}, ok
}

func (s *sentPages) present(pa addr.Phys, n int) (addr.Phys, bool) {
	end := pa + addr.Phys(max(n, 1))
	if n < 0 || end < pa {
		return pa, false
	}
	for at := pa; at < end; at = at&^(addr.PageSize-1) + addr.PageSize {
		if _, ok := s.index(at); !ok {
			return at, false
		}
	}
	return 0, true
}

// touched leaves out pages of zeros.
func (s *sentPages) touched(r addr.PhysRange) iter.Seq[addr.PhysRange] {
	return func(yield func(addr.PhysRange) bool) {
		for e := range s.extents.within(r) {
			frame := uint64(e.off) / addr.PageSize
			i, _ := slices.BinarySearchFunc(s.pages, frame, func(p streamPage, frame uint64) int { return cmp.Compare(p.frame, frame) })
			for ; i < len(s.pages) && s.pages[i].frame*addr.PageSize < uint64(e.end()); i++ {
				if s.pages[i].fill == 0 {
					continue
				}
				start := int64(e.phys.Start) + int64(s.pages[i].frame*addr.PageSize) - e.off
				part := addr.PhysRange{Start: addr.Phys(max(start, int64(e.phys.Start))), End: min(e.phys.End, addr.Phys(start+addr.PageSize))}
				if !yield(part) {
					return
				}
			}
		}
	}
}

func (s *sentPages) decode(number int64, dst []byte) error {
	p := s.pages[number]
	if p.fill >= 0 {
		for i := range dst {
			dst[i] = byte(p.fill)
		}
		return nil
	}
	if _, err := s.in.ReadAt(dst, p.at); err != nil {
		return noMore("page", err)
	}
	return nil
}

// cursor reads a file from front to back. After an error it reads zeros.
type cursor struct {
	r   *bufio.Reader
	at  int64 // offset of the next byte
	err error
	buf [255]byte
}

func newCursor(in input, off int64) *cursor {
	return &cursor{r: bufio.NewReaderSize(io.NewSectionReader(in, off, in.Size()-off), 256<<10), at: off}
}

// take reads n bytes, at most 255. They are valid until the next call.
func (c *cursor) take(n int) []byte {
	b := c.buf[:n]
	clear(b)
	if c.err != nil {
		return b
	}
	got, err := io.ReadFull(c.r, b)
	if c.at += int64(got); err != nil {
		if c.err = err; err == io.ErrUnexpectedEOF {
			c.err = io.EOF
		}
		clear(b)
	}
	return b
}

func (c *cursor) u8() byte     { return c.take(1)[0] }
func (c *cursor) u16() uint16  { return binary.BigEndian.Uint16(c.take(2)) }
func (c *cursor) u32() uint32  { return binary.BigEndian.Uint32(c.take(4)) }
func (c *cursor) u64() uint64  { return binary.BigEndian.Uint64(c.take(8)) }
func (c *cursor) name() string { return string(c.take(int(c.u8()))) }

// peek returns the next byte; 0 if there is none.
func (c *cursor) peek() byte {
	if b, err := c.r.Peek(1); err == nil && c.err == nil {
		return b[0]
	}
	return 0
}

func (c *cursor) skip(n int64) {
	if c.err != nil {
		return
	}
	got, err := c.r.Discard(int(n))
	c.at, c.err = c.at+int64(got), err
}

// printed quotes text from a file, cut to a length that fits in a message.
func printed(s string) string {
	return strings.Trim(fmt.Sprintf("%.80q", s), `"`)
}
