package script

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"maps"
	"slices"
)

// PageSize is the size of the pieces in which content is kept and summed, in bytes.
const PageSize = 4096

// Content is what a regular file holds. What was never written takes no room.
type Content struct {
	Size  int64
	Pages map[int64][]byte // by number, of PageSize bytes each, zero beyond Size

	sum *[sha256.Size]byte // nil if not computed since the last change
}

// Put stores bytes at an offset.
func (c *Content) Put(off int64, b []byte) {
	c.sum = nil
	c.Size = max(c.Size, off+int64(len(b)))
	for len(b) > 0 {
		page := c.Pages[off/PageSize]
		if page == nil {
			if c.Pages == nil {
				c.Pages = make(map[int64][]byte)
			}
			page = make([]byte, PageSize)
			c.Pages[off/PageSize] = page
		}
		n := copy(page[off%PageSize:], b)
		off, b = off+int64(n), b[n:]
	}
}

// zero clears the content from one offset to another.
func (c *Content) zero(from, to int64) {
	c.sum = nil
	for number, page := range c.Pages {
		start := number * PageSize
		if start >= from && start+PageSize <= to {
			delete(c.Pages, number)
		} else if start < to && start+PageSize > from {
			clear(page[max(0, from-start):min(PageSize, to-start)])
		}
	}
}

func (c *Content) resize(size int64) {
	if size < c.Size {
		c.zero(size, (c.Size/PageSize+1)*PageSize)
	}
	c.Size, c.sum = size, nil
}

// Clone copies the content.
func (c *Content) Clone() *Content {
	n := &Content{Size: c.Size, Pages: make(map[int64][]byte, len(c.Pages))}
	for number, page := range c.Pages {
		n.Pages[number] = slices.Clone(page)
	}
	return n
}

// At returns the byte at an offset, 0 beyond the end.
func (c *Content) At(off int64) byte {
	if page := c.Pages[off/PageSize]; page != nil {
		return page[off%PageSize]
	}
	return 0
}

// Sum returns a checksum of the content: SHA-256 over the pages that are not all zeros,
// each after its number. It does not depend on where a file has holes.
func (c *Content) Sum() [sha256.Size]byte {
	if c.sum == nil {
		s := NewSummer()
		for _, number := range slices.Sorted(maps.Keys(c.Pages)) {
			s.Page(number, c.Pages[number])
		}
		sum := s.Sum(c.Size)
		c.sum = &sum
	}
	return *c.sum
}

// Summer computes a Content's Sum page by page.
type Summer struct{ h hash.Hash }

// NewSummer returns a Summer that has seen nothing.
func NewSummer() *Summer { return &Summer{sha256.New()} }

var zeros [PageSize]byte

// Page adds the next page; the last one may be shorter.
func (s *Summer) Page(number int64, page []byte) {
	end := len(page)
	for end > 0 && page[end-1] == 0 {
		end--
	}
	if end == 0 {
		return
	}
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(number))
	s.h.Write(n[:])
	s.h.Write(page)
	s.h.Write(zeros[len(page):])
}

// Sum adds the size of the file in bytes, and returns the checksum.
func (s *Summer) Sum(size int64) [sha256.Size]byte {
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(size))
	s.h.Write(n[:])
	return [sha256.Size]byte(s.h.Sum(nil))
}
