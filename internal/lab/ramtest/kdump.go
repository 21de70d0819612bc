package ramtest

import (
	"bytes"
	"fmt"
	"os"
	"sync"

	"github.com/golang/snappy"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"

	"understudy.dev/understudy/dead/addr"
)

// Codec is how a kdump-compressed file compresses pages: a flag of its format.
type Codec uint32

// The codecs. LZO compresses only pages that are all of one byte.
const (
	Plain  Codec = 0
	Zlib   Codec = 1
	LZO    Codec = 2
	Snappy Codec = 4
	Zstd   Codec = 0x20
)

// Kdump is makedumpfile's own format.
type Kdump struct {
	Codec Codec
	// Level is the dump level in the header. With bit 1, zero pages share one page of the
	// file.
	Level uint32
	// Excluded chooses frames that are left out; nil for none.
	Excluded func(addr.PFN) bool
	Note     []byte // text of the VMCOREINFO note
	NoteELF  bool   // among ELF notes, and not by itself
	Version  int32  // of the header; 0 is 6
	// Lost is the page in the file from which on there are neither descriptors nor data,
	// as if the disk had been full; 0 means none.
	Lost int
	// Start and End are the frames of a split dump that this file has; both are 0 if it is whole.
	Start, End addr.PFN
}

// has reports whether a part of a split dump has a frame.
func (k Kdump) has(pfn addr.PFN) bool { return k.End == 0 || pfn >= k.Start && pfn < k.End }

const kdumpDescSize = 24

// Write implements Format.
func (k Kdump) Write(f *os.File, pieces []Piece) error {
	version := k.Version
	if version == 0 {
		version = 6
	}
	var pages addr.PFN
	for _, p := range pieces {
		pages = max(pages, addr.Pages4K.PFN(p.Range().End+addr.PageSize-1))
	}
	blocks := (int(pages) + 8*addr.PageSize - 1) / (8 * addr.PageSize)
	memory, dumped := make([]byte, blocks*addr.PageSize), make([]byte, blocks*addr.PageSize)
	count := 0
	for _, p := range pieces {
		for pfn := addr.Pages4K.PFN(p.Phys); addr.Pages4K.Phys(pfn) < p.Range().End; pfn++ {
			memory[pfn/8] |= 1 << (pfn % 8)
			if k.Excluded == nil || !k.Excluded(pfn) {
				dumped[pfn/8] |= 1 << (pfn % 8)
				if k.has(pfn) {
					count++
				}
			}
		}
	}
	if _, err := f.WriteAt(k.header(version, uint32(2*blocks), uint64(pages)), 0); err != nil {
		return err
	}
	const maps = 3 * addr.PageSize // the sub header has two blocks here
	if _, err := f.WriteAt(append(memory, dumped...), maps); err != nil {
		return err
	}
	descs := int64(maps + 2*blocks*addr.PageSize)
	return k.writePages(f, pieces, dumped, descs, descs+int64(count)*kdumpDescSize)
}

// header returns both headers and the note, which follows the sub header.
func (k Kdump) header(version int32, bitmapBlocks uint32, pages uint64) []byte {
	out := append([]byte("KDUMP   "), le(version)...)
	for _, name := range []string{"Linux", "host", "6.1.0", "#1", "x86_64", ""} {
		out = append(out, append([]byte(name), make([]byte, 65-len(name))...)...)
	}
	out = pad(out, 8)
	status := uint32(k.Codec)
	if k.Lost > 0 {
		status |= 8
	}
	out = append(out, le(uint64(0), uint64(0), status, int32(addr.PageSize), int32(2), bitmapBlocks,
		uint32(pages), uint32(0), uint32(0), uint32(0), uint32(0), int32(1))...)
	out = pad(out, addr.PageSize)

	const noteAt = addr.PageSize + 256
	text := k.Note
	var off, size, elfOff, elfSize uint64
	switch {
	case len(text) == 0:
	case k.NoteELF:
		text = append(note("CORE", make([]byte, 336)), note("VMCOREINFO", text)...)
		elfOff, elfSize = noteAt, uint64(len(text))
	default:
		off, size = noteAt, uint64(len(text))
	}
	split, end := uint32(0), pages
	if k.End != 0 {
		split, end = 1, uint64(k.End)
	}
	sub := le(uint64(0), k.Level, split, uint64(k.Start), end, off, size, elfOff, elfSize, uint64(0), uint64(0),
		uint64(k.Start), end, pages)
	// An older version has something else behind its end.
	if have := []int{8, 12, 32, 48, 64, 80, 104}[version]; have < len(sub) {
		sub = append(sub[:have], bytes.Repeat([]byte{0xee}, len(sub)-have)...)
	}
	out = append(out, sub...)
	out = append(out, make([]byte, noteAt-len(out))...)
	return append(out, text...)
}

func (k Kdump) writePages(f *os.File, pieces []Piece, dumped []byte, descs, data int64) error {
	var descBytes, dataBytes []byte
	if k.Level&1 != 0 {
		dataBytes = make([]byte, addr.PageSize)
	}
	zeroDesc := le(uint64(data), uint32(addr.PageSize), uint32(0), uint64(0))
	flush := func() error {
		_, err := f.WriteAt(descBytes, descs)
		if err == nil {
			_, err = f.WriteAt(dataBytes, data)
		}
		descs, data = descs+int64(len(descBytes)), data+int64(len(dataBytes))
		descBytes, dataBytes = descBytes[:0], dataBytes[:0]
		return err
	}
	n := 0
	for _, p := range pieces {
		for pfn := addr.Pages4K.PFN(p.Phys); addr.Pages4K.Phys(pfn) < p.Range().End; pfn++ {
			if dumped[pfn/8]>>(pfn%8)&1 == 0 || !k.has(pfn) {
				continue
			}
			if n++; k.Lost > 0 && n > k.Lost {
				return flush()
			}
			page, err := p.read(addr.Pages4K.Phys(pfn), addr.PageSize)
			if err != nil {
				return err
			}
			if k.Level&1 != 0 && zero(page) {
				descBytes = append(descBytes, zeroDesc...)
				continue
			}
			b, flags, err := k.Codec.encode(page)
			if err != nil {
				return err
			}
			descBytes = append(descBytes, le(uint64(data)+uint64(len(dataBytes)), uint32(len(b)), uint32(flags), uint64(0))...)
			dataBytes = append(dataBytes, b...)
			if len(dataBytes) > 1<<20 {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}

var zstdEncoder = sync.OnceValues(func() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
})

// deflaters are writers of zlib streams: they are large.
var deflaters sync.Pool

func deflate(page []byte) ([]byte, error) {
	var buf bytes.Buffer
	w, ok := deflaters.Get().(*zlib.Writer)
	if ok {
		w.Reset(&buf)
	} else {
		var err error
		if w, err = zlib.NewWriterLevel(&buf, zlib.BestSpeed); err != nil {
			return nil, err
		}
	}
	defer deflaters.Put(w)
	if _, err := w.Write(page); err != nil {
		return nil, err
	}
	err := w.Close()
	return buf.Bytes(), err
}

// encode compresses a page, or leaves it as it is if that is no gain.
func (c Codec) encode(page []byte) ([]byte, Codec, error) {
	var out []byte
	switch c {
	case Plain:
		return page, Plain, nil
	case Zlib:
		var err error
		if out, err = deflate(page); err != nil {
			return nil, 0, err
		}
	case LZO:
		out = lzoRun(page)
	case Snappy:
		out = snappy.Encode(nil, page)
	case Zstd:
		w, err := zstdEncoder()
		if err != nil {
			return nil, 0, err
		}
		out = w.EncodeAll(page, nil)
	default:
		return nil, 0, fmt.Errorf("codec %#x is unknown", uint32(c))
	}
	if len(out) >= len(page) {
		return page, Plain, nil
	}
	return out, c, nil
}

// lzoRun encodes a page that is all of one byte: four literals, then a match of
// all the rest at distance 1, then the end (Documentation/staging/lzo.rst). Other
// pages are returned as they are.
func lzoRun(page []byte) []byte {
	if !bytes.Equal(page[1:], page[:len(page)-1]) {
		return page
	}
	out := append([]byte{17 + 4}, page[:4]...)
	out = append(out, 0x20) // 0 0 1 L L L L L with L 0: the length follows
	rest := len(page) - 4 - 2 - 31
	for ; rest > 255; rest -= 255 {
		out = append(out, 0)
	}
	return append(out, byte(rest), 0, 0, 0x11, 0, 0)
}
