package pagecache

import (
	"errors"
	"fmt"
	"iter"

	"understudy.dev/understudy/dead/addr"
)

// Block is a piece of a device that the kernel had changed in memory and not yet
// written.
type Block struct {
	Disk int64 // on the device, in bytes
	Phys addr.Phys
	Len  int64 // in bytes
}

// inode returns an Inode for the pages of the device. The mapping is that of an inode of another file system (bdev):
// only its pages are of interest.
func (d *Device) inode() (*Inode, error) {
	l := &d.c.layout.inode
	head, err := d.c.k.U64(d.mapping + addr.Virt(l.head.Off-l.data.Off))
	return &Inode{mapping: d.mapping, tree: d.mapping + addr.Virt(l.tree.Off-l.data.Off), head: addr.Virt(head), Size: 1 << 62}, err
}

// Unsaved yields the blocks of the device itself that were changed and not written: the
// metadata of a file system without a journal. With a journal, these are the blocks whose
// newest committed version is still in the log only. A block whose write has failed is
// among them, though its page is marked clean. An error that is about one page is a
// *Refusal, after which the walk goes on.
func (d *Device) Unsaved() iter.Seq2[Block, error] {
	return func(yield func(Block, error) bool) {
		i, err := d.inode()
		failed, err2 := d.writeFailed()
		if err = errors.Join(err, err2); err != nil {
			yield(Block{}, fmt.Errorf("walk device of %s: %w", d.super.ID, err))
			return
		}
		walk := d.c.marked
		if failed {
			walk = d.c.cached
		}
		walk(i, 1<<50, func(at slotted, err error) bool {
			if err != nil {
				return yield(Block{}, i.refuse(at.index, at.pages, BadTree, err))
			}
			if failed && at.isValue() {
				return true // the shadow of a page that was evicted
			}
			blocks, err := d.unsavedIn(i, at)
			if err != nil {
				return yield(Block{}, i.refuse(at.index, at.pages, BadBuffers, err))
			}
			for _, b := range blocks {
				if !yield(b, nil) {
					return false
				}
			}
			return true
		})
	}
}

// writeFailed says whether a write of the device's own pages has ever failed.
func (d *Device) writeFailed() (bool, error) {
	l := &d.c.layout.inode
	if !l.wrong.Present() {
		return false, nil
	}
	v, err := d.c.k.U32(d.mapping + addr.Virt(l.wrong.Off-l.data.Off))
	return wentWrong(uint64(v)), err
}

// unsavedIn returns the changed blocks of one entry of the device's page tree.
func (d *Device) unsavedIn(i *Inode, at slotted) ([]Block, error) {
	c, l := d.c, &d.c.layout.buffer
	if at.isValue() || at.isInternal() || at.entry == 0 {
		return nil, fmt.Errorf("slot holds %#x", uint64(at.entry))
	}
	p, err := c.page(addr.Virt(at.entry))
	switch {
	case err != nil:
		return nil, err
	case p.mapping != i.mapping || !p.covers(at):
		return nil, fmt.Errorf("%w: page has another index", errTree)
	case at.index != p.index:
		return nil, nil // they come with the entry of the first page
	case !p.has(c.layout.page.hasPrivate):
		if !p.has(c.layout.page.dirty) && !p.has(c.layout.page.writeback) {
			return nil, nil
		}
		return nil, fmt.Errorf("page %d has no buffers", p.frame)
	}
	if err := errors.Join(c.unbroken(p, p.within(i, at)), c.migrating(p)); err != nil {
		return nil, err
	}
	var out []Block
	var bad error
	err = c.ring(p, func(b bufferState) {
		disk := p.start() + b.off
		// The kernel clears the uptodate flag of a buffer whose write failed (fs/buffer.c,
		// end_buffer_async_write), and still takes its content for newer than the disk
		// (fs/ext4/inode.c, __ext4_get_inode_loc).
		failed := b.has(l.writeError) && !b.has(l.lock)
		switch {
		case !b.has(l.dirty) && !b.has(l.asyncWrite) && !(b.has(l.lock) && b.has(l.uptodate)) && !failed:
			// A locked buffer is being written on its own (fs/buffer.c,
			// __sync_dirty_buffer), or read.
		case !b.has(l.uptodate) && !failed || !b.has(l.mapped) || int64(b.block)*b.length != disk:
			bad = fmt.Errorf("the buffer of block %d, of %d bytes, is not uptodate, not mapped, or in the wrong page", b.block, b.length)
		default:
			out = append(out, Block{Disk: disk, Phys: p.phys() + addr.Phys(b.off), Len: b.length})
		}
	})
	if err == nil {
		err = bad
	}
	return out, err
}

// Buffers checks buffers of one device against the pages they lie in. It is not
// safe for concurrent use.
type Buffers struct {
	d        *Device
	host     int                  // offset in struct address_space
	mappings map[addr.Virt]mapped // by address_space
}

// mapped is an inode, and where its content is.
type mapped struct {
	ino addr.Ino
	at  []Mapped
}

// Buffers returns a checker for the buffers of the device.
func (d *Device) Buffers() (*Buffers, error) {
	l := d.c.k.Types().Layout("address_space")
	host := l.Field("host", 8)
	return &Buffers{d: d, host: host.Off, mappings: make(map[addr.Virt]mapped)}, l.Err()
}

// Check compares a buffer with the page that holds it: page is its struct page, data the
// address of its bytes, block its number, and size its length in bytes. In a page of the
// device itself, the buffer must lie where the block does, and the result is 0. In a page
// of a file, that file's inode must map it to the block, and the result is the inode number.
func (b *Buffers) Check(page addr.Virt, data addr.Phys, block addr.Block, size int) (addr.Ino, error) {
	c := b.d.c
	p, err := c.page(page)
	if err != nil {
		return 0, err
	}
	within := int64(data) - int64(p.phys())
	off := p.start() + within
	if p.pages == 0 || within < 0 || within+int64(size) > p.size() {
		return 0, fmt.Errorf("block %d: its bytes are not in its page", block)
	}
	if err := c.unbroken(p, addr.Span{Off: within, End: within + int64(size)}); err != nil {
		return 0, fmt.Errorf("block %d: %w", block, err)
	}
	switch {
	case p.mapping != b.d.mapping:
		return b.ofFile(p.mapping, off, block, size)
	case off != int64(block)*int64(size):
		return 0, fmt.Errorf("block %d: its page holds block %d of the device", block, off/int64(size))
	}
	return 0, nil
}

// ofFile checks a block in a page of a file, and returns the file's inode number.
func (b *Buffers) ofFile(mapping addr.Virt, off int64, block addr.Block, size int) (addr.Ino, error) {
	c := b.d.c
	m, known := b.mappings[mapping]
	if !known {
		host, err := c.k.Pointer(mapping + addr.Virt(b.host))
		if err != nil {
			return 0, fmt.Errorf("block %d: its page has no readable inode: %w", block, err)
		}
		i, err := c.inode(host, b.d.super)
		if err != nil {
			return 0, fmt.Errorf("block %d: its page is of another file system: %w", block, err)
		}
		if i.mapping != mapping {
			return 0, fmt.Errorf("block %d: its page is not of inode %d", block, i.Ino)
		}
		m.ino = i.Ino
		if m.at, err = b.d.mappingOf(i, true); err != nil {
			return 0, fmt.Errorf("block %d: %w", block, err)
		}
		b.mappings[mapping] = m
	}
	for _, at := range m.at {
		if at.Off <= off && off+int64(size) <= at.End {
			if at.Disk+off-at.Off == int64(block)*int64(size) {
				return m.ino, nil
			}
			break
		}
	}
	return 0, fmt.Errorf("block %d: %w: it is not at %d of its file", block, ErrMapping, off)
}
