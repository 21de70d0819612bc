package ram

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"

	"understudy.dev/understudy/dead/addr"
)

// A page's descriptor (makedumpfile's IMPLEMENTATION, struct page_desc): offset
// and size of its data, flags, and the flags of the kernel's struct page, which
// nobody fills in.
const (
	kdumpDescSize = 24
	// kdumpDescBlock is how many descriptors are read at a time.
	kdumpDescBlock = 128
	// kdumpDescCache is how much memory cached descriptors may take, in bytes.
	kdumpDescCache = 4 << 20
)

// kdumpPages are the pages of a kdump-compressed file.
type kdumpPages struct {
	in     input
	header kdumpHeader
	all    *bitmap // the frames that are memory
	dumped *bitmap
	descs  uint64 // offset of the descriptors
	cache  *cache // of blocks of descriptors
	// The file has the descriptors of count pages. The first pages before them are
	// those that a part of a split dump leaves to the parts before it.
	first, count uint64
	// zeros is the offset of the page that zero pages share; 0 if there is none.
	zeros uint64
}

type kdumpDesc struct {
	off         uint64
	size, flags uint32
}

func (k *kdumpPages) find(pa addr.Phys) (int64, addr.PhysRange, bool) {
	pfn := k.header.frame(pa)
	return int64(pfn), addr.PhysRange{Start: k.header.phys(pfn), End: k.header.phys(pfn + 1)}, k.dumped.has(pfn)
}

func (k *kdumpPages) present(pa addr.Phys, n int) (addr.Phys, bool) {
	end := pa + addr.Phys(max(n, 1))
	if n < 0 || end < pa {
		return pa, false
	}
	first, last := k.header.frame(pa), k.header.frame(end-1)+1
	switch hole := k.dumped.next(first, last, false); {
	case hole >= last:
		return 0, true
	case hole == first:
		return pa, false
	default:
		return k.header.phys(hole), false
	}
}

// touched leaves out pages that share the page of zeros. A page whose descriptor
// cannot be read counts as touched.
func (k *kdumpPages) touched(r addr.PhysRange) iter.Seq[addr.PhysRange] {
	return func(yield func(addr.PhysRange) bool) {
		if r.Len() == 0 {
			return
		}
		for first, end := range k.dumped.runs(k.header.frame(r.Start), k.header.frame(r.End-1)+1) {
			for first < end {
				stop := k.sameKind(first, end)
				part := addr.PhysRange{Start: max(r.Start, k.header.phys(first)), End: min(r.End, k.header.phys(stop))}
				if !k.isZero(first) && !yield(part) {
					return
				}
				first = stop
			}
		}
	}
}

// sameKind returns up to where the frames from first on, all of which are in the file,
// either all share the page of zeros, or all do not.
func (k *kdumpPages) sameKind(first, end addr.PFN) addr.PFN {
	if k.zeros == 0 {
		return end
	}
	kind, n := k.isZero(first), k.number(first)
	for pfn := first + 1; pfn < end; pfn++ {
		n++
		if d, err := k.desc(n); (err == nil && k.sharesZeros(d)) != kind {
			return pfn
		}
	}
	return end
}

func (k *kdumpPages) isZero(pfn addr.PFN) bool {
	if k.zeros == 0 {
		return false
	}
	d, err := k.desc(k.number(pfn))
	return err == nil && k.sharesZeros(d)
}

func (k *kdumpPages) sharesZeros(d kdumpDesc) bool {
	return k.zeros != 0 && d == kdumpDesc{off: k.zeros, size: uint32(k.header.block)}
}

// findZeros checks whether the first page of data, which makedumpfile and QEMU use for
// the page that zero pages share, does consist of zeros.
func (k *kdumpPages) findZeros() {
	page := make([]byte, k.header.block)
	at := k.descs + k.count*kdumpDescSize
	if _, err := k.in.ReadAt(page, int64(at)); err == nil && len(bytes.Trim(page, "\x00")) == 0 {
		k.zeros = at
	}
}

// number returns how many pages in the file come before the page of a frame.
func (k *kdumpPages) number(pfn addr.PFN) uint64 { return k.dumped.before(pfn) - k.first }

// desc returns the descriptor of the page that comes after n others in the file.
func (k *kdumpPages) desc(n uint64) (kdumpDesc, error) {
	number, at := n/kdumpDescBlock, n%kdumpDescBlock
	b, ok := k.cache.get(int64(number))
	if !ok {
		count := min(kdumpDescBlock, k.count-number*kdumpDescBlock)
		b = make([]byte, count*kdumpDescSize)
		got, err := k.in.ReadAt(b, int64(k.descs+number*kdumpDescBlock*kdumpDescSize))
		if err != nil {
			// An incomplete file may end within its descriptors.
			if b = b[:got]; uint64(got) < (at+1)*kdumpDescSize {
				return kdumpDesc{}, noMore("descriptor", err)
			}
		} else {
			k.cache.put(int64(number), b)
		}
	}
	b = b[at*kdumpDescSize:]
	return kdumpDesc{
		off:  binary.LittleEndian.Uint64(b),
		size: binary.LittleEndian.Uint32(b[8:]), flags: binary.LittleEndian.Uint32(b[12:]),
	}, nil
}

// noMore distinguishes a file that ends, or was never written there, from one that cannot
// be read.
func noMore(what string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, errGap) {
		return fmt.Errorf("%s: %w", what, errLost)
	}
	return fmt.Errorf("read %s: %w", what, err)
}

// pageBuffers pools buffers for the encoded data of a page.
var pageBuffers = sync.Pool{New: func() any { return new([kdumpLargeBlock]byte) }}

func (k *kdumpPages) decode(number int64, dst []byte) error {
	d, err := k.desc(k.number(addr.PFN(number)))
	if err != nil {
		return err
	}
	switch {
	case k.sharesZeros(d):
		clear(dst)
		return nil
	case d.off == 0:
		// An incomplete file has this (makedumpfile's IMPLEMENTATION, "The
		// incomplete DUMPFILE"); no page can be at offset 0.
		return errLost
	case d.off > 1<<62 || d.size == 0 || uint64(d.size) > k.header.block:
		return fmt.Errorf("page is damaged: %d bytes at offset %#x", d.size, d.off)
	}
	buf := pageBuffers.Get().(*[kdumpLargeBlock]byte)
	defer pageBuffers.Put(buf)
	src := buf[:d.size]
	if _, err := k.in.ReadAt(src, int64(d.off)); err != nil {
		return noMore("page", err)
	}
	return decodePage(dst, src, d.flags)
}

// ended reports whether the file has lost its end. Data of pages is stored in
// the order of their descriptors, except for zero pages, so that the last descriptor
// that differs from the one before it is that of the last page in the file.
func (k *kdumpPages) ended() (bool, error) {
	if k.count == 0 {
		return false, nil
	}
	if k.descs+k.count*kdumpDescSize > uint64(k.in.Size()) {
		return true, nil
	}
	last, err := k.desc(k.count - 1)
	if err != nil {
		return false, err
	}
	for n := k.count; n > 0; n-- {
		d, err := k.desc(n - 1)
		if err != nil {
			return false, err
		}
		if d != last {
			last = kdumpLater(last, d)
			break
		}
	}
	if last.off > 1<<62 {
		return false, malformed(kdumpName, "a page at offset %#x", last.off)
	}
	return last.off+uint64(last.size) > uint64(k.in.Size()), nil
}

func kdumpLater(a, b kdumpDesc) kdumpDesc {
	if a.off > b.off {
		return a
	}
	return b
}
