package pagecache

import (
	"bytes"
	"errors"
	"fmt"
	"iter"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// AllocatedBlock is a stretch of unsaved bytes of a file whose blocks are allocated on the
// device. It consists of whole blocks: the last one may reach beyond the end of the file, and
// its bytes there do not belong to the file.
type AllocatedBlock struct {
	Piece
	Disk int64 // of its first byte on the device, in bytes
}

// Allocated are the unsaved blocks of one file that are allocated on the device.
type Allocated struct {
	Blocks []AllocatedBlock // ascending
	// Whole says that nothing else of the file is unsaved: no other blocks are, its size
	// is the one that goes to the disk with its inode, and no write of the file has failed.
	Whole   bool
	Refused []error // *Refusal: what did not check out
}

// lazyTime is set in the flags of a file system whose times may be in memory only
// (include/linux/fs.h, SB_LAZYTIME).
const lazyTime = 1 << 25

// Allocated returns the unsaved blocks of a file of the ext family that are allocated on
// the device: those whose buffers are mapped, do not wait for delayed allocation
// (BH_Delay) or for their extent to be marked written (BH_Unwritten), and do not belong
// to the journal (BH_JBD). A block with an older version in the log on the disk must not
// be written, because a replay of the log would overwrite it. Each block is checked
// against the block mapping in the inode (Mapping).
func (d *Device) Allocated(i *Inode) Allocated {
	out := Allocated{Whole: d.super.Flags&lazyTime == 0 && d.c.sizeKnown(i)}
	refuse := func(at slotted, err error) {
		out.Whole = false
		out.Refused = append(out.Refused, i.refuse(at.index, at.pages, BadBuffers, err))
	}
	var mapping []Mapped
	looked := false
	last := i.unit.End(i.Size)
	if i.Failed || d.c.unmarked(i, last) != nil {
		out.Whole = false
	}
	d.c.marked(i, last, func(at slotted, err error) bool {
		if err != nil {
			out.Whole = false // Unsaved refuses it
			return true
		}
		blocks, all, err := d.allocatedIn(i, at)
		if err != nil {
			refuse(at, err)
			return true
		}
		out.Whole = out.Whole && all
		if len(blocks) > 0 && !looked {
			looked = true
			if mapping, err = d.Mapping(i); err != nil {
				refuse(at, err)
				return false
			}
		}
		for _, b := range blocks {
			if mapping, err = confirm(mapping, b); err != nil {
				refuse(at, err)
				continue
			}
			out.Blocks = append(out.Blocks, b)
		}
		return true
	})
	return out
}

// sizeKnown reports whether the size in memory (i_size) is the one that the inode has on
// the disk once the journal is replayed (i_disksize): ext4 lets i_size run ahead while
// blocks are not allocated yet.
func (c *Cache) sizeKnown(i *Inode) bool {
	size, known := c.sizeOnDisk(i)
	return known && size == i.Size
}

// infoOffsets has the offsets of members of struct ext4_inode_info, counted from the struct
// inode in it.
type infoOffsets struct {
	before addr.Virt   // how many bytes before the inode the whole structure starts
	size   int         // i_disksize
	lock   kernel.Lock // i_data_sem, counted from the start of the whole structure
	known  bool
	// writes are the locks that are held while the inode is written to its block: i_raw_lock and,
	// for the attributes in the inode, xattr_sem (fs/ext4/ext4.h).
	writes [2]kernel.Lock
}

func newInfoOffsets(k *kernel.Kernel) infoOffsets {
	l := layoutIn(k, "ext4_inode_info", "ext4")
	inode, size := l.Field("vfs_inode"), l.Field("i_disksize", 8)
	return infoOffsets{
		addr.Virt(inode.Off), size.Off - inode.Off, l.Lock("i_data_sem"), l.Err() == nil,
		[2]kernel.Lock{l.Lock("i_raw_lock"), l.Lock("xattr_sem")},
	}
}

// MayBeTorn reports whether the kernel may have died while it was writing an ext4 inode to its
// block, between the bytes of the inode and their checksum: it held a lock that it takes for that,
// or it is not known whether it did.
func (c *Cache) MayBeTorn(i *Inode) bool {
	at := c.info()
	if !at.known || i.Writing {
		return true
	}
	if free, err := c.k.Free(c.layout.inode.rwsem, i.Addr); err != nil || !free {
		return true
	}
	for _, lock := range at.writes {
		if free, err := c.k.Free(lock, i.Addr-at.before); err != nil || !free {
			return true
		}
	}
	return false
}

// InBlock returns the root of the block mapping (i_data, 60 bytes) and the size (i_disksize) that an ext4 inode
// has in its block of the inode table, whichever version of the block is on the disk, if no operation was changing
// the inode. ext4 copies both to the block with each change, as part of the operation (fs/ext4/inode.c,
// ext4_mark_iloc_dirty), but may copy the size after it has released its locks (mpage_map_and_submit_extent).
// known is false for an inode that was being created, whose locks nobody takes yet, for a deleted inode, and for
// one with inline data.
func (c *Cache) InBlock(i *Inode) (root []byte, size int64, known bool) {
	l, err := c.maps()
	if err != nil || i.New || i.Deleted() || c.MayBeTorn(i) {
		return nil, 0, false
	}
	b, err := c.k.Bytes(i.Addr-addr.Virt(l.inode.Off), l.size)
	if err != nil || !l.lock.Free(b) || l.flags.Uint(b)&flagInlineData != 0 {
		return nil, 0, false
	}
	root = bytes.Clone(l.data.Bytes(b))
	size, known = c.sizeOnDisk(i)
	return root, size, known
}

// sizeOnDisk returns i_disksize of a file of the ext family.
func (c *Cache) sizeOnDisk(i *Inode) (size int64, known bool) {
	at := c.info()
	if !at.known {
		return 0, false
	}
	v, err := c.k.U64(i.Addr + addr.Virt(at.size))
	return int64(v), err == nil
}

// MidUpdate yields the inodes of a file system mounted by the ext4 driver whose extent tree
// is mid-update: i_data_sem is then held for writing (fs/ext4/ext4.h). An inode that is
// refused is a *Refusal, and the walk goes on; any other error ends it.
func (c *Cache) MidUpdate(s *Superblock) iter.Seq2[*Inode, error] {
	return func(yield func(*Inode, error) bool) {
		at := c.info()
		if !at.known || !at.lock.Known() {
			yield(nil, fmt.Errorf("walk inodes of %s: the layout of ext4_inode_info is not known", s.ID))
			return
		}
		// Only the lock is read of inodes that are not mid-update.
		list := addr.Virt(c.layout.inode.sbList.Off)
		for entry, err := range c.List(c.layout.super.inodes.In(s.Addr)) {
			free := false
			inode := entry - list
			if err == nil {
				free, err = c.k.Free(at.lock, inode-at.before)
			}
			if err != nil {
				yield(nil, fmt.Errorf("walk inodes of %s: %w", s.ID, err))
				return
			}
			if free {
				continue
			}
			i, err := c.inode(inode, s)
			if errors.Is(err, errNoFile) {
				continue
			}
			if !yield(i, err) {
				return
			}
		}
	}
}

// confirm checks a block against the mapping, and returns the rest of the mapping, for the next block.
func confirm(mapping []Mapped, b AllocatedBlock) ([]Mapped, error) {
	for len(mapping) > 0 && mapping[0].End <= b.Off {
		mapping = mapping[1:]
	}
	if len(mapping) > 0 {
		m := mapping[0]
		if m.Off <= b.Off && b.End <= m.End && !m.Unwritten && m.Disk+b.Off-m.Off == b.Disk {
			return mapping, nil
		}
	}
	return mapping, fmt.Errorf("%w: byte %d is not at %d of the device", ErrMapping, b.Off, b.Disk)
}

// allocatedIn returns the blocks of one entry of a file's page tree that are both
// unsaved and allocated, and whether no other block of the entry is unsaved.
func (d *Device) allocatedIn(i *Inode, at slotted) (out []AllocatedBlock, all bool, err error) {
	c, l := d.c, &d.c.layout.buffer
	if at.isValue() || at.isInternal() || at.entry == 0 {
		return nil, false, nil // Unsaved refuses it
	}
	p, err := c.page(addr.Virt(at.entry))
	if err != nil {
		return nil, false, err
	}
	if at.index != p.index || p.mapping != i.mapping || !p.covers(at) || !p.has(c.layout.page.hasPrivate) ||
		c.unbroken(p, p.within(i, at)) != nil || c.migrating(p) != nil {
		return nil, false, nil // Unsaved refuses it, or it has no buffers
	}
	unsaved := 0
	err = c.ring(p, func(b bufferState) {
		off := p.start() + b.off
		if off >= i.Size || !b.has(l.dirty) && !b.has(l.asyncWrite) && !c.odd(p, &b) {
			return
		}
		unsaved++
		if b.has(l.uptodate) && b.has(l.mapped) && !b.has(l.delay) && !b.has(l.unwritten) && !b.has(l.private) && b.block < 1<<47 {
			out = append(out, AllocatedBlock{
				Piece: Piece{Span: addr.Span{Off: off, End: off + b.length}, Phys: p.phys() + addr.Phys(b.off)},
				Disk:  int64(b.block) * b.length,
			})
		}
	})
	return out, unsaved > 0 && unsaved == len(out), err
}
