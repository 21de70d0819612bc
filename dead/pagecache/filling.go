package pagecache

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"

	"understudy.dev/understudy/dead/addr"
)

// FillingBlock is a block of a file in a page that was locked. A writer holds the lock of a
// page from before the page gets blocks until its buffers are dirty
// (fs/ext4/inode.c, ext4_write_begin and ext4_write_end; fs/buffer.c, block_page_mkwrite).
type FillingBlock struct {
	Piece
	Disk   int64 // its place on the device by its buffer, in bytes; -1 if the buffer does not say
	Filled bool  // memory has its content
	Fresh  bool  // it was just allocated, and nobody has filled it (BH_New)
}

// Filling returns the blocks of a file in locked pages that overlap any of the spans within,
// which must ascend. The blocks ascend, too. Blocks that were not being changed are left out:
// they have their content and their place, and are clean. An error means that a page does not
// check out.
func (d *Device) Filling(i *Inode, within []addr.Span) ([]FillingBlock, error) {
	if len(within) == 0 {
		return nil, nil
	}
	c := d.c
	var out []FillingBlock
	var bad error
	c.cached(i, i.unit.End(within[len(within)-1].End), func(at slotted, err error) bool {
		if err == nil && (at.isValue() || !overlaps(within, c.most(at))) {
			return true
		}
		var p *pageState
		if err == nil {
			p, err = c.sound(i, at)
		}
		if err == nil && len(p.broken) > 0 {
			err = i.refuse(p.broken[0], 1, Poisoned, nil)
		}
		if err == nil && p.has(c.layout.page.locked) && overlaps(within, addr.Span{Off: p.start(), End: p.start() + p.size()}) {
			out, err = d.filling(p, out)
		}
		bad = err
		return err == nil
	})
	if bad != nil {
		return nil, fmt.Errorf("find what was being written to inode %d: %w", i.Ino, bad)
	}
	return out, nil
}

// most returns the largest part of a file that an entry can stand for: a folio begins at a multiple of its size.
func (c *Cache) most(at slotted) addr.Span {
	unit := c.k.Pages()
	order := min(bits.TrailingZeros64(uint64(at.index)), maxOrder)
	return addr.Span{Off: unit.Byte(at.index), End: unit.Byte(at.index + addr.Index(max(at.pages, 1<<order)))}
}

// overlaps reports whether any of spans, which ascend, overlaps s.
func overlaps(spans []addr.Span, s addr.Span) bool {
	n, _ := slices.BinarySearchFunc(spans, s.Off+1, func(s addr.Span, end int64) int { return cmp.Compare(s.End, end) })
	return n < len(spans) && spans[n].Off < s.End
}

// filling adds the blocks of one page. A page without buffers is not being given blocks, but it may
// have had buffers before (fs/ext4/move_extent.c, move_extent_per_page).
func (d *Device) filling(p *pageState, out []FillingBlock) ([]FillingBlock, error) {
	page, l := &d.c.layout.page, &d.c.layout.buffer
	whole := p.has(page.uptodate)
	if !p.has(page.hasPrivate) {
		if c := d.c; c.unfilled(p) && p.has(page.dirty) {
			return nil, errMigrating
		}
		size := int64(d.super.BlockSize)
		for off := int64(0); whole && off+size <= p.size(); off += size {
			out = append(out, FillingBlock{Piece: p.piece(off, off+size), Disk: -1, Filled: true})
		}
		return out, nil
	}
	if err := d.c.migrating(p); err != nil {
		return nil, err
	}
	err := d.c.ring(p, func(b bufferState) {
		f := FillingBlock{Piece: p.piece(b.off, b.off+b.length), Disk: -1, Filled: whole || b.has(l.uptodate), Fresh: b.has(l.fresh)}
		if b.has(l.mapped) && !b.has(l.delay) && b.block < 1<<47 {
			f.Disk = int64(b.block) * b.length
		}
		clean := !b.has(l.dirty) && !b.has(l.asyncWrite) && !b.has(l.private)
		if !f.Filled || f.Fresh || f.Disk < 0 || !clean {
			out = append(out, f)
		}
	})
	return out, err
}
