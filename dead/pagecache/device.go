package pagecache

import (
	"errors"
	"fmt"
	"io"

	"understudy.dev/understudy/dead/addr"
)

// Device is the disk of a file system as the dead kernel saw it: what it had
// cached of the device itself, which may be ahead of the disk, and the disk for
// the rest. It is not safe for concurrent use.
type Device struct {
	// Size is how many bytes the device had (i_size of its inode).
	Size int64

	c       *Cache
	super   *Superblock
	mapping addr.Virt // of the block device's own pages
	disk    io.ReaderAt
}

// ErrNotCached says that memory does not hold a block of the device, and there is
// no disk to read it from.
var ErrNotCached = errors.New("block is not in memory")

// ErrNoDevice says that a file system does not have a single device of its own: it may have
// several (btrfs), or none.
var ErrNoDevice = errors.New("the file system has no block device of its own")

// Device opens the device of a file system. disk is the image of the device as
// the crash left it, or nil.
func (c *Cache) Device(s *Superblock, disk io.ReaderAt) (*Device, error) {
	d := &Device{c: c, super: s, disk: disk}
	super := c.k.Types().Layout("super_block")
	bdev := c.k.Types().Layout("block_device")
	inode, mapping := c.k.Types().Layout("inode"), c.k.Types().Layout("address_space")
	at := super.Field("s_bdev", 8).In(s.Addr)
	if err := super.Err(); err != nil {
		return nil, fmt.Errorf("open device of %s: %w", s.ID, err)
	}
	device, err := c.k.Pointer(at)
	if err == nil && device == 0 {
		err = ErrNoDevice
	}
	if err != nil {
		return nil, fmt.Errorf("open device of %s: %w", s.ID, err)
	}
	// The block_device points to its mapping directly since 6.10 (commit 224941e8379a).
	if bdev.Has("bd_mapping") {
		d.mapping, err = c.k.Pointer(bdev.Field("bd_mapping", 8).In(device))
	} else {
		var of addr.Virt
		if of, err = c.k.Pointer(bdev.Field("bd_inode", 8).In(device)); err == nil {
			d.mapping, err = c.k.Pointer(inode.Field("i_mapping", 8).In(of))
		}
	}
	if err = errors.Join(err, bdev.Err(), inode.Err()); err != nil {
		return nil, fmt.Errorf("open device of %s: %w", s.ID, err)
	}
	// The mapping points to its inode, which has the device number.
	host, dev := mapping.Field("host", 8), inode.Field("i_rdev", 4)
	owner, err := c.k.Pointer(host.In(d.mapping))
	if err = errors.Join(err, mapping.Err(), inode.Err()); err != nil {
		return nil, fmt.Errorf("open device of %s: %w", s.ID, err)
	}
	number, err := c.k.U32(dev.In(owner))
	if err == nil && addr.Dev(number) != s.Dev {
		err = fmt.Errorf("the block device is %v, not %v", addr.Dev(number), s.Dev)
	}
	if err == nil {
		var size uint64
		size, err = c.k.U64(c.layout.inode.length.In(owner))
		d.Size = int64(size)
	}
	if err != nil {
		return nil, fmt.Errorf("open device of %s: %w", s.ID, err)
	}
	return d, nil
}

// MaxBlock bounds the size of a block, in bytes. Since ext4 supports blocks larger than a page
// (6.19), the bound is that of its format, EXT4_MAX_BLOCK_SIZE; before, it was the page size.
const MaxBlock = 64 << 10

// Meta reads a metadata block of the file system: from memory, where it is newest,
// or else from the disk. It must not be used for blocks of files: those are cached
// in the mappings of their files.
func (d *Device) Meta(block addr.Block, size int) ([]byte, error) {
	if size <= 0 || size > MaxBlock || uint64(block) > 1<<62/uint64(size) {
		return nil, fmt.Errorf("read block %d: not a block of %d bytes", block, size)
	}
	off := int64(block) * int64(size)
	b, err := d.cached(off, size)
	if errors.Is(err, ErrNotCached) && d.disk != nil {
		b = make([]byte, size)
		_, err = d.disk.ReadAt(b, off)
	}
	if err != nil {
		return nil, fmt.Errorf("read block %d: %w", block, err)
	}
	return b, nil
}

// Caches reports whether the device's own cache has a block. It keeps a block for a
// while after its last use as metadata.
func (d *Device) Caches(block addr.Block, size int) bool {
	_, err := d.cached(int64(block)*int64(size), size)
	return err == nil
}

// cached reads bytes of the device that lie within one page, or one folio, from memory.
func (d *Device) cached(off int64, size int) ([]byte, error) {
	p, within, err := d.pageOf(off, size)
	if err != nil {
		return nil, err
	}
	if !p.has(d.c.layout.page.uptodate) {
		if err := d.c.blockThere(p, within, size); err != nil {
			return nil, err
		}
	}
	return d.c.k.Memory().View(p.phys()+addr.Phys(within), size)
}

// pageOf returns the page, or folio, of the device's own cache that holds size bytes at off, and
// their offset in it.
func (d *Device) pageOf(off int64, size int) (p *pageState, within int64, err error) {
	index := d.c.k.Pages().Index(off)
	e, err := d.c.lookup(d.mapping, index)
	if err != nil {
		return nil, 0, err
	}
	if e == 0 || e.isValue() {
		return nil, 0, ErrNotCached
	}
	if p, err = d.c.page(addr.Virt(e)); err != nil {
		return nil, 0, err
	}
	if p.mapping != d.mapping || index < p.index || uint64(index-p.index) >= p.pages {
		return nil, 0, fmt.Errorf("%w: page has another index", errTree)
	}
	within = off - p.start()
	if uint64(within)+uint64(size) > uint64(p.size()) {
		return nil, 0, fmt.Errorf("%w: the block goes on in another page", errTree)
	}
	return p, within, d.c.unbroken(p, addr.Span{Off: within, End: within + int64(size)})
}

// blockThere returns ErrNotCached if the buffer at an offset of a page is not uptodate.
func (c *Cache) blockThere(p *pageState, within int64, size int) error {
	if !p.has(c.layout.page.hasPrivate) {
		return ErrNotCached
	}
	if err := c.migrating(p); err != nil {
		return err
	}
	l := &c.layout.buffer
	next, off := p.private, int64(0)
	for off < p.size() {
		b, err := c.k.Bytes(next, l.size)
		if err != nil {
			return fmt.Errorf("read buffer: %w", err)
		}
		length := int64(l.length.Uint(b))
		if length < minBuffer || length > MaxBlock || c.frameOf(l.page.Pointer(b)) != p.frame {
			return fmt.Errorf("%w: buffer at %v does not check out", errTree, next)
		}
		if off <= within && within+int64(size) <= off+length {
			if l.state.Uint(b)>>l.uptodate&1 == 0 {
				return ErrNotCached
			}
			return nil
		}
		off, next = off+length, l.next.Pointer(b)
	}
	return ErrNotCached
}

// lookup returns the entry of a mapping for a page index; 0 if there is none.
func (c *Cache) lookup(mapping addr.Virt, index addr.Index) (entry, error) {
	tree := mapping + addr.Virt(c.layout.inode.tree.Off-c.layout.inode.data.Off)
	head, err := c.k.U64(mapping + addr.Virt(c.layout.inode.head.Off-c.layout.inode.data.Off))
	if err != nil {
		return 0, err
	}
	e, w := entry(head), &treeWalk{c: c, array: tree}
	if !e.isNode() {
		if index > 0 {
			e = 0
		}
		return e, nil
	}
	var parent *treeNode
	slot := 0
	for e.isNode() {
		l := &c.layout.node
		b, err := c.k.Bytes(e.node(), l.size)
		if err != nil {
			return 0, err
		}
		here := treeNode{node: e.node(), shift: int(l.shift.Uint(b))}
		if err := w.check(b, here, parent, slot); err != nil {
			return 0, err
		}
		if parent == nil && uint64(index)>>here.shift >= uint64(l.chunk) {
			return 0, nil
		}
		slot = int(uint64(index) >> here.shift % uint64(l.chunk))
		if e = l.entryAt(b, slot); e.isSibling(l.chunk) && e.sibling() < slot {
			e = l.entryAt(b, e.sibling())
		}
		if here.shift == 0 {
			break
		}
		parent = &here
	}
	if e.isInternal() {
		return 0, fmt.Errorf("%w: slot holds %#x", errTree, uint64(e))
	}
	return e, nil
}
