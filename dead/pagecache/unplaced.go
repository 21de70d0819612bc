package pagecache

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// UnsavedBlock is a stretch of whole blocks of a file that are unsaved, contiguous in the
// file and in physical memory. The last one may reach beyond the end of the file, and its
// bytes there do not belong to the file.
type UnsavedBlock struct {
	Piece
	// Disk is where the kernel would write its first byte, in bytes of the device, if
	// Mapped is set. If it is not, the block waits for delayed allocation.
	Disk   int64
	Mapped bool
	// Clean says that its own buffers are not unsaved, but other buffers of the same page are,
	// or the page itself is marked. Such a page is uptodate as a whole.
	Clean bool
}

// ErrUnsettled says that the unsaved blocks of a file cannot be told from its buffers.
var ErrUnsettled = errors.New("its unsaved blocks cannot be told from its buffers")

// UnsavedBlocks returns the unsaved blocks of a regular file of the ext family, ascending:
// those whose buffers are dirty or under writeback, and the clean ones in the same pages. It
// fails with ErrUnsettled if a page has no buffers, if a buffer is not uptodate or belongs to
// the journal, or if the block mapping of the file was being changed.
func (d *Device) UnsavedBlocks(i *Inode) ([]UnsavedBlock, error) {
	l, err := d.c.maps()
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", i.Ino, err)
	}
	free, err := d.c.k.Free(l.lock, i.Addr-addr.Virt(l.inode.Off))
	if err == nil && !free {
		err = fmt.Errorf("%w: its block mapping was being changed", ErrUnsettled)
	}
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", i.Ino, err)
	}
	if i.Failed {
		return nil, fmt.Errorf("inode %d: %w: a write of it has failed, after which its buffers are clean", i.Ino, ErrUnsettled)
	}
	var out []UnsavedBlock
	last := i.unit.End(i.Size)
	if err := d.c.unmarked(i, last); err != nil {
		return nil, fmt.Errorf("inode %d: %w: %w", i.Ino, ErrUnsettled, err)
	}
	d.c.marked(i, last, func(at slotted, found error) bool {
		if err = found; err == nil {
			out, err = d.unsavedBlocks(i, at, out)
		}
		return err == nil
	})
	if err == nil {
		err = d.reservedFor(i, l, out)
	}
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", i.Ino, err)
	}
	return out, nil
}

// reservedFor checks that at least as many blocks wait for delayed allocation as the file has
// reserved (i_reserved_data_blocks, which counts clusters with bigalloc).
func (d *Device) reservedFor(i *Inode, l *mapLayout, blocks []UnsavedBlock) error {
	reserved, err := d.c.k.U32(l.reserved.In(i.Addr - addr.Virt(l.inode.Off)))
	if err != nil {
		return err
	}
	waiting := uint64(0)
	for _, b := range blocks {
		if !b.Mapped && !b.Clean {
			waiting += uint64(b.Len()) / d.super.BlockSize
		}
	}
	if waiting < uint64(reserved) {
		return fmt.Errorf("%w: %d blocks wait for delayed allocation, but i_reserved_data_blocks is %d", ErrUnsettled, waiting, reserved)
	}
	return nil
}

// unsavedBlocks adds the unsaved blocks of one entry of a file's page tree.
func (d *Device) unsavedBlocks(i *Inode, at slotted, out []UnsavedBlock) ([]UnsavedBlock, error) {
	c, l := d.c, &d.c.layout.buffer
	if at.isValue() && i.Flags&FlagDAX == 0 && entry(i.head) == at.entry {
		return out, nil // the shadow of the only page of the file, which was evicted, hence clean
	}
	if at.isValue() || at.isInternal() || at.entry == 0 {
		return nil, fmt.Errorf("%w: slot holds %#x", ErrUnsettled, uint64(at.entry))
	}
	p, err := c.page(addr.Virt(at.entry))
	page := &c.layout.page
	switch {
	case err != nil:
		return nil, err
	case entry(i.head) == at.entry && !i.marked && !p.has(page.dirty) && !p.writing:
		return out, nil // the only page of the file, and clean
	case p.mapping != i.mapping || !p.covers(at):
		return nil, fmt.Errorf("%w: page has another index", errTree)
	case at.index != p.index:
		return nil, fmt.Errorf("%w: page %d is part of a large folio", ErrUnsettled, at.index)
	case !p.has(page.hasPrivate):
		// A page whose buffers were freed is uptodate and clean (fs/buffer.c, try_to_free_buffers).
		if !p.has(page.dirty) && !p.writing && p.has(page.uptodate) && p.private == 0 {
			return out, nil
		}
		return nil, fmt.Errorf("%w: page %d has no buffers", ErrUnsettled, p.index)
	}
	if err := c.unbroken(p, p.within(i, at)); err != nil {
		return nil, err
	}
	if err := c.migrating(p); err != nil {
		return nil, fmt.Errorf("%w: page %d: %w", ErrUnsettled, p.index, err)
	}
	var bad error
	err = c.ring(p, func(b bufferState) {
		off := p.start() + b.off
		clean := !b.has(l.dirty) && !b.has(l.asyncWrite) && !b.has(l.private+jbdDirty) && !c.odd(p, &b)
		switch {
		case off >= i.Size || clean && !p.has(page.uptodate):
		case uint64(b.length) == d.super.BlockSize && clean:
			out = addBlock(out, UnsavedBlock{Piece: p.piece(b.off, b.off+b.length), Clean: true})
		case !b.has(l.uptodate), b.has(l.private), uint64(b.length) != d.super.BlockSize, !b.has(l.mapped) && !b.has(l.delay):
			bad = fmt.Errorf("%w: state %#x at byte %d", ErrUnsettled, b.state, off)
		default:
			u := UnsavedBlock{Piece: p.piece(b.off, b.off+b.length), Mapped: !b.has(l.delay)}
			if u.Mapped {
				u.Disk = int64(b.block) * b.length
			}
			out = addBlock(out, u)
		}
	})
	return out, errors.Join(err, bad)
}

// addBlock adds a block, or extends the last stretch if the block continues that.
func addBlock(out []UnsavedBlock, b UnsavedBlock) []UnsavedBlock {
	if n := len(out); n > 0 {
		last := &out[n-1]
		if !b.Clean && last.End == b.Off && last.Phys+addr.Phys(last.Len()) == b.Phys && last.Mapped == b.Mapped && last.Clean == b.Clean &&
			(!b.Mapped || last.Disk+last.Len() == b.Disk) {
			last.End = b.End
			return out
		}
	}
	return append(out, b)
}
