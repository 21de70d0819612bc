package ram

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"iter"
	"slices"

	"github.com/golang/snappy"

	"understudy.dev/understudy/dead/addr"
)

// A range of a compressed capture is a stream in snappy's framing format
// (framing_format.txt of google/snappy), followed by the size of that stream in 8
// bytes (src/io/snappy.rs of microsoft/avml). A chunk of the stream has a type, a
// size in 3 bytes, and, with data, the masked CRC-32C of the decompressed data.
const (
	snapIdentifier   = 0xff
	snapCompressed   = 0x00
	snapUncompressed = 0x01
	snapSkippable    = 0x80 // from here to snapIdentifier

	snapChunkHeader = 4
	snapChunkCRC    = 4
	snapChunkMax    = 65536 // decompressed bytes of one chunk
	snapMagic       = "sNaPpY"

	avmlTrailer = 8
	// avmlMaxChunks bounds the index in memory to 640 MiB, for 1 TiB of memory
	// in whole chunks.
	avmlMaxChunks = 1 << 24
)

// avmlChunk is one chunk with data.
type avmlChunk struct {
	phys addr.PhysRange
	off  int64 // of its checksum
	size uint32
	kind byte
}

// avmlChunks is the memory in a capture, ascending.
type avmlChunks struct {
	in     input
	chunks []avmlChunk
	// extents are the same memory; their offsets in the file mean nothing.
	extents extents
}

// openAVML opens a compressed capture. It makes an index of all chunks.
func openAVML(in input) (Memory, error) {
	a := &avmlChunks{in: in}
	var x extents
	for off := int64(0); off < in.Size(); {
		r, err := readLiMEHeader(in, off, avmlName, avmlMagic, avmlVersion)
		if err != nil {
			return nil, err
		}
		if len(x) == limeMaxRanges {
			return nil, malformed(avmlName, "more than %d ranges", limeMaxRanges)
		}
		x = append(x, extent{phys: r})
		if off, err = a.index(off+limeHeaderSize, r); err != nil {
			return nil, err
		}
	}
	if err := x.sort(avmlName); err != nil {
		return nil, err
	}
	slices.SortFunc(a.chunks, func(a, b avmlChunk) int { return cmp.Compare(a.phys.Start, b.phys.Start) })
	a.extents = x
	im := image{info: Info{Format: avmlName + " (snappy)"}}
	im.setMemory(x.ranges(), x.bytes())
	return newPaged(in, a, im), nil
}

// index lists the chunks of the stream at an offset, which must fill r, and
// returns where the next range begins.
func (a *avmlChunks) index(off int64, r addr.PhysRange) (int64, error) {
	start := off
	for pa := r.Start; pa < r.End; {
		c, end, err := readChunk(a.in, off)
		if err != nil {
			return 0, err
		}
		switch n := c.phys.Len(); {
		case off == start && c.kind != snapIdentifier:
			return 0, malformed(avmlName, "no snappy stream at offset %#x", off)
		case n > uint64(r.End-pa):
			return 0, malformed(avmlName, "the chunk at offset %#x has more than %v", off, r)
		case n > 0 && len(a.chunks) == avmlMaxChunks:
			return 0, malformed(avmlName, "more than %d chunks", avmlMaxChunks)
		case n > 0:
			c.phys = addr.PhysRange{Start: pa, End: pa + addr.Phys(n)}
			a.chunks = append(a.chunks, c)
			pa = c.phys.End
		}
		off = end
	}
	if err := inside(avmlName, a.in, uint64(off), avmlTrailer); err != nil {
		return 0, err
	}
	var b [avmlTrailer]byte
	if _, err := a.in.ReadAt(b[:], off); err != nil {
		return 0, fmt.Errorf("read stream size: %w", err)
	}
	if size := binary.LittleEndian.Uint64(b[:]); size != uint64(off-start) {
		return 0, malformed(avmlName, "the stream at offset %#x has %d bytes, not %d", start, off-start, size)
	}
	return off + avmlTrailer, nil
}

// readChunk reads the head of a chunk. c.phys is empty if the chunk has no data, and
// otherwise as long as the decompressed data.
func readChunk(in input, off int64) (c avmlChunk, end int64, err error) {
	// There is room for the checksum, and for the length that begins a compressed
	// block.
	var b [snapChunkHeader + snapChunkCRC + binary.MaxVarintLen32]byte
	n := min(int64(len(b)), in.Size()-off)
	if n < snapChunkHeader {
		return c, 0, truncated(avmlName, uint64(off)+snapChunkHeader, in.Size())
	}
	if _, err := in.ReadAt(b[:n], off); err != nil {
		return c, 0, fmt.Errorf("read chunk: %w", err)
	}
	c = avmlChunk{off: off + snapChunkHeader, kind: b[0], size: uint32(b[1]) | uint32(b[2])<<8 | uint32(b[3])<<16}
	if err := inside(avmlName, in, uint64(c.off), uint64(c.size)); err != nil {
		return c, 0, err
	}
	end = c.off + int64(c.size)
	body := b[snapChunkHeader:min(n, snapChunkHeader+int64(c.size))]
	var length int
	switch {
	case c.kind == snapIdentifier:
		if string(body[:min(len(body), len(snapMagic))]) != snapMagic || int(c.size) != len(snapMagic) {
			return c, 0, malformed(avmlName, "no snappy stream at offset %#x", off)
		}
		return c, end, nil
	case c.kind >= snapSkippable:
		return c, end, nil
	case c.kind == snapUncompressed && c.size >= snapChunkCRC:
		length = int(c.size) - snapChunkCRC
	case c.kind == snapCompressed && c.size > snapChunkCRC:
		if length, err = snappy.DecodedLen(body[snapChunkCRC:]); err != nil {
			return c, 0, malformed(avmlName, "the chunk at offset %#x is damaged", off)
		}
	default:
		return c, 0, malformed(avmlName, "a chunk of type %#x and %d bytes at offset %#x", c.kind, c.size, off)
	}
	if length > snapChunkMax {
		return c, 0, malformed(avmlName, "the chunk at offset %#x has %d bytes", off, length)
	}
	c.phys.End = addr.Phys(length)
	return c, end, nil
}

func (a *avmlChunks) find(pa addr.Phys) (int64, addr.PhysRange, bool) {
	lo, hi := 0, len(a.chunks)
	for lo < hi {
		if mid := int(uint(lo+hi) >> 1); a.chunks[mid].phys.End <= pa {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(a.chunks) || a.chunks[lo].phys.Start > pa {
		return 0, addr.PhysRange{}, false
	}
	return int64(lo), a.chunks[lo].phys, true
}

func (a *avmlChunks) present(pa addr.Phys, n int) (addr.Phys, bool) {
	return a.extents.present(pa, n)
}

func (a *avmlChunks) touched(r addr.PhysRange) iter.Seq[addr.PhysRange] {
	return func(yield func(addr.PhysRange) bool) {
		for e := range a.extents.within(r) {
			if !yield(e.phys) {
				return
			}
		}
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// decode decodes a chunk and compares its checksum, which is masked: rotated and
// with a constant added (framing_format.txt, "Checksum format").
func (a *avmlChunks) decode(number int64, dst []byte) error {
	c := a.chunks[number]
	src := make([]byte, c.size)
	if _, err := a.in.ReadAt(src, c.off); err != nil {
		return noMore("chunk", err)
	}
	want := binary.LittleEndian.Uint32(src)
	src = src[snapChunkCRC:]
	if c.kind == snapUncompressed {
		copy(dst, src)
	} else if _, err := unsnap(dst, src); err != nil {
		return fmt.Errorf("chunk is damaged: %w", err)
	}
	sum := crc32.Checksum(dst, castagnoli)
	if got := (sum>>15 | sum<<17) + 0xa282ead8; got != want {
		return fmt.Errorf("chunk is damaged: its checksum is %#x, not %#x", got, want)
	}
	return nil
}
