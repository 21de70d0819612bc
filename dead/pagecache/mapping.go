package pagecache

import (
	"encoding/binary"
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/kernel"
)

// Mapped is a stretch of bytes of a file that is mapped to the device.
type Mapped struct {
	addr.Span
	Disk      int64 // on the device, in bytes
	Unwritten bool  // an unwritten extent: it reads as zeros, whatever is on the device
}

// The block mapping of a file is in its inode (fs/ext4/ext4.h): the flags say its kind,
// and 15 words are either the root of an extent tree (fs/ext4/ext4_extents.h), or block
// numbers as in ext2.
const (
	flagExtents    = 0x80000
	flagInlineData = 0x10000000
	rootSize       = 60
	maxExtentDepth = 5
	maxUnwritten   = 32768 // an extent whose length exceeds this is unwritten, and as long as the excess
	directBlocks   = 12
	maxMetaBlocks  = 1 << 16 // that are read for one file
	maxExtents     = 1 << 20 // of one file
)

// ErrMapping says that the block mapping of a file cannot be read from memory.
var ErrMapping = errors.New("block mapping cannot be read from memory")

// mapLayout has the members of struct ext4_inode_info that say where a file lies.
type mapLayout struct {
	size               int
	inode, data, flags kernel.Field
	reserved           kernel.Field // i_reserved_data_blocks: clusters that wait for an allocation
	lock               kernel.Lock
}

func newMapLayout(k *kernel.Kernel) (*mapLayout, error) {
	l := layoutIn(k, "ext4_inode_info", "ext4")
	m := &mapLayout{size: l.Size, inode: l.Field("vfs_inode"), data: l.Field("i_data", rootSize)}
	m.flags, m.lock = l.Field("i_flags", 4, 8), l.Lock("i_data_sem")
	m.reserved = l.Field("i_reserved_data_blocks", 4)
	return m, l.Err()
}

// Maps returns an error if the block mapping of no file of this kernel can be read.
func (d *Device) Maps() error {
	if _, err := d.c.maps(); err != nil {
		return fmt.Errorf("%w: %w", ErrMapping, err)
	}
	return nil
}

// mapper collects the block mapping of one file.
type mapper struct {
	read  func(block addr.Block, size int) ([]byte, error)
	block int // size, in bytes
	size  int64
	reads int
	out   []Mapped
}

// Mapping returns where a file of the ext family lies on its device, ascending. It
// is what the dead kernel knew, from its memory; blocks of the tree that memory
// does not hold come from the disk. What is not mapped and not in memory is zeros.
func (d *Device) Mapping(i *Inode) ([]Mapped, error) {
	m, err := d.mappingOf(i, false)
	if err != nil {
		return nil, fmt.Errorf("map inode %d: %w", i.Ino, err)
	}
	return m, nil
}

// mappingOf reads the mapping of a file. If i_data_sem is held, the mapping was being
// changed, and is read only if locked is set: it may confirm a block, but need not have all.
func (d *Device) mappingOf(i *Inode, locked bool) ([]Mapped, error) {
	if !d.super.HasBuffers() || d.super.BlockSize > MaxBlock || d.super.BlockSize < 1024 {
		return nil, fmt.Errorf("%w: file system is %s with blocks of %d bytes", ErrMapping, d.super.Type, d.super.BlockSize)
	}
	l, err := d.c.maps()
	if err != nil {
		return nil, err
	}
	b, err := d.c.k.Bytes(i.Addr-addr.Virt(l.inode.Off), l.size)
	if err != nil {
		return nil, err
	}
	m := &mapper{read: d.Meta, block: int(d.super.BlockSize), size: i.Size}
	switch f := l.flags.Uint(b); {
	case !l.lock.Free(b) && !locked:
		return nil, fmt.Errorf("%w: mid-update when the kernel died", ErrMapping)
	case f&flagInlineData != 0:
		return nil, fmt.Errorf("%w: inline data", ErrMapping)
	case f&flagExtents != 0:
		err = m.extents(l.data.Bytes(b), maxExtentDepth+1)
	default:
		err = m.blocks(l.data.Bytes(b))
	}
	return m.out, err
}

// add adds blocks of the file, which must ascend.
func (m *mapper) add(first uint64, count, block uint64, unwritten bool) error {
	if count == 0 || first > 1<<48 || count > 1<<33 || block > 1<<48 || len(m.out) == maxExtents {
		return fmt.Errorf("%w: blocks %d to %d at %d", ErrMapping, first, first+count, block)
	}
	e := Mapped{Disk: int64(block) * int64(m.block), Unwritten: unwritten}
	e.Span = addr.Span{Off: int64(first) * int64(m.block), End: int64(first+count) * int64(m.block)}
	if n := len(m.out); n > 0 {
		last := &m.out[n-1]
		if e.Off < last.End {
			return fmt.Errorf("%w: byte %d is mapped twice", ErrMapping, e.Off)
		}
		if last.End == e.Off && last.Unwritten == unwritten && last.Disk+last.Len() == e.Disk {
			last.End = e.End
			return nil
		}
	}
	m.out = append(m.out, e)
	return nil
}

func (m *mapper) meta(block uint64) ([]byte, error) {
	if m.reads++; m.reads > maxMetaBlocks {
		return nil, fmt.Errorf("%w: more than %d blocks of its tree", ErrMapping, maxMetaBlocks)
	}
	return m.read(addr.Block(block), m.block)
}

// extents reads one node of an extent tree. Its depth must be less than below.
func (m *mapper) extents(b []byte, below int) error {
	const head, size = 12, 12
	u16 := func(off int) int { return int(binary.LittleEndian.Uint16(b[off:])) }
	u32 := func(off int) uint64 { return uint64(binary.LittleEndian.Uint32(b[off:])) }
	entries, depth := u16(2), u16(6)
	if u16(0) != ext4.ExtentMagic || entries > (len(b)-head)/size || depth >= below {
		return fmt.Errorf("%w: damaged extent node", ErrMapping)
	}
	for at := head; at < head+entries*size; at += size {
		if depth > 0 {
			child, err := m.meta(u32(at+4) | uint64(u16(at+8))<<32)
			if err == nil {
				err = m.extents(child, depth)
			}
			if err != nil {
				return err
			}
			continue
		}
		count := u16(at + 4)
		unwritten := count > maxUnwritten
		if unwritten {
			count -= maxUnwritten
		}
		if err := m.add(u32(at), uint64(count), u32(at+8)|uint64(u16(at+6))<<32, unwritten); err != nil {
			return err
		}
	}
	return nil
}

// blocks reads the block numbers in an inode of ext2 or ext3: 12 direct ones, and those
// of the single, double and triple indirect block.
func (m *mapper) blocks(root []byte) error {
	first := uint64(0)
	for n := range rootSize / 4 {
		block := uint64(binary.LittleEndian.Uint32(root[4*n:]))
		level := max(0, n-directBlocks+1)
		if err := m.indirect(block, level, first); err != nil {
			return err
		}
		first += m.covers(level)
	}
	return nil
}

// covers returns how many blocks of a file a block number of an indirection level stands for.
func (m *mapper) covers(level int) uint64 {
	n := uint64(1)
	for range level {
		n *= uint64(m.block / 4)
	}
	return n
}

func (m *mapper) indirect(block uint64, level int, first uint64) error {
	if block == 0 || first*uint64(m.block) >= uint64(m.size) {
		return nil
	}
	if level == 0 {
		return m.add(first, 1, block, false)
	}
	b, err := m.meta(block)
	if err != nil {
		return err
	}
	for off := 0; off < len(b); off += 4 {
		if err := m.indirect(uint64(binary.LittleEndian.Uint32(b[off:])), level-1, first); err != nil {
			return err
		}
		first += m.covers(level - 1)
	}
	return nil
}
