package pagecache

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// blocksLayout says where file systems without buffer heads record which blocks
// of a page are uptodate: as a bitmap with a bit for each block of the page, in a
// structure that the page's private member points to. More bitmaps may follow.
// A page of one block has no such structure.
type blocksLayout struct {
	iomap, btrfs blocksField
}

// blocksField is the offset of the bitmap; 0 if the kernel has no such structure.
type blocksField struct {
	off int
}

func newBlocksLayout(k *kernel.Kernel) blocksLayout {
	var l blocksLayout
	// fs/iomap/buffered-io.c: called iomap_page before 6.6 (commit 04f52c4e6f80).
	l.iomap = newBlocksField(k, []string{"iomap_folio_state", "iomap_page"})
	// fs/btrfs/subpage.h: called btrfs_subpage before 6.17 (commit 582cd4bad433).
	l.btrfs = newBlocksField(k, []string{"btrfs_folio_state", "btrfs_subpage"}, "btrfs")
	return l
}

// newBlocksField looks up the first of the named structures that the kernel has. The
// bitmap is its last member, a flexible array of longs, and hence begins where the
// structure ends.
func newBlocksField(k *kernel.Kernel, names []string, modules ...string) blocksField {
	for _, name := range names {
		if l := layoutIn(k, name, modules...); l.Err() == nil && l.Size%8 == 0 {
			return blocksField{l.Size}
		}
	}
	return blocksField{}
}

// hasBufferHeads reports whether pages of the file system carry buffer heads.
func (s *Superblock) hasBufferHeads() bool {
	return s.HasBuffers() || s.Type == "vfat" || s.Type == "msdos"
}

// partly yields the parts of a page whose content is known although the page is not
// uptodate.
func (c *Cache) partly(s *Superblock, i *Inode, p *pageState, at slotted, yield func(Piece, error) bool) bool {
	switch {
	case !p.has(c.layout.page.hasPrivate):
		return yield(Piece{}, i.refuse(at.index, at.pages, NotUptodate, nil))
	case s.hasBufferHeads():
		return c.buffers(i, p, at, yield)
	case s.Type == "btrfs":
		return c.blocksOf(i, p, at, c.blocks().btrfs, yield)
	case s.Type == "xfs":
		return c.blocksOf(i, p, at, c.blocks().iomap, yield)
	}
	return yield(Piece{}, i.refuse(at.index, at.pages, NotUptodate, nil))
}

// blocksOf yields those blocks of a page that are uptodate. Some may be the same on the
// disk: writing them again does no harm.
func (c *Cache) blocksOf(i *Inode, p *pageState, at slotted, field blocksField, yield func(Piece, error) bool) bool {
	bad := func(why Reason, cause error) bool {
		return yield(Piece{}, i.refuse(at.index, p.pages, why, cause))
	}
	size := p.size()
	switch {
	case field.off == 0:
		return bad(UnknownStructure, errors.New("the kernel does not tell how it keeps the state of blocks"))
	case i.blkbits < 9 || i.blkbits > 62 || int64(1)<<i.blkbits >= size:
		return bad(NotUptodate, fmt.Errorf("blocks of 2^%d bytes in a page of %d", i.blkbits, size))
	}
	block := int64(1) << i.blkbits
	count := int(size / block)
	bitmap, err := c.k.Bytes(p.private+addr.Virt(field.off), (count+63)/64*8)
	if err != nil {
		return bad(BadBuffers, fmt.Errorf("read state of blocks: %w", err))
	}
	found := false
	for n := 0; n < count; {
		first := n
		for n < count && bitmap[n/8]>>(n%8)&1 == 1 {
			n++
		}
		if n == first {
			n++
			continue
		}
		if n-first == count && c.unfilled(p) {
			return bad(NotUptodate, errMigrating) // a page is marked at once when its last block is filled
		}
		found = true
		if !yield(p.piece(int64(first)*block, int64(n)*block), nil) {
			return false
		}
	}
	return found || bad(NotUptodate, nil)
}
