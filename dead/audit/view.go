package audit

import (
	"errors"
	"fmt"
	"io"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// budget bounds how many blocks are looked at, and how many extents and names are
// in them.
type budget struct{ spent, limit, pieces int }

// renew sets the budget for a number of changed blocks.
func (b *budget) renew(changed int) {
	*b = budget{limit: minReads + readsPerBlock*changed, pieces: maxPieces}
}

// spend takes a number of pieces off the budget.
func (b *budget) spend(pieces int) error {
	if b.pieces -= pieces; b.pieces < 0 {
		return errTooMuch
	}
	return nil
}

// cached is how many blocks of the disk a view keeps in memory.
const cached = 4096

// view is the file system in its old or its new state.
type view struct {
	super  ext4.Super
	disk   io.ReaderAt
	over   map[addr.Block][]byte // blocks that replace the disk's
	budget *budget

	blocks map[addr.Block][]byte // of the disk
	last   struct {              // the last block, and the last group: successive inodes are often in the same
		at    addr.Block
		data  []byte
		group *ext4.Group
		bits  bits // bitmap of its inodes
	}
	groups    map[uint32]*ext4.Group
	blockBits map[uint32]bits
	inodeBits map[uint32]bits
}

func newView(s ext4.Super, disk io.ReaderAt, over map[addr.Block][]byte, b *budget) *view {
	return &view{
		super: s, disk: disk, over: over, budget: b,
		blocks:    make(map[addr.Block][]byte),
		groups:    make(map[uint32]*ext4.Group),
		blockBits: make(map[uint32]bits),
		inodeBits: make(map[uint32]bits),
	}
}

// block returns a block, which must not be written to.
func (v *view) block(b addr.Block) ([]byte, error) {
	if v.budget.spent++; v.budget.spent > v.budget.limit {
		return nil, errTooMuch
	}
	if data, ok := v.over[b]; ok {
		return data, nil
	}
	if v.last.data != nil && v.last.at == b {
		return v.last.data, nil
	}
	if data, ok := v.blocks[b]; ok {
		v.last.at, v.last.data = b, data
		return data, nil
	}
	if uint64(b) >= v.super.Blocks {
		return nil, fmt.Errorf("block %d is beyond the %d of the file system", b, v.super.Blocks)
	}
	data := make([]byte, v.super.BlockSize)
	if n, err := v.disk.ReadAt(data, int64(b)*int64(v.super.BlockSize)); n < len(data) {
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return nil, &readError{fmt.Errorf("read block %d: %w", b, err)}
	}
	if len(v.blocks) >= cached {
		clear(v.blocks)
	}
	v.blocks[b] = data
	v.last.at, v.last.data = b, data
	return data, nil
}

// group returns a group descriptor whose checksum is right.
func (v *view) group(n uint32) (*ext4.Group, error) {
	if g, ok := v.groups[n]; ok {
		return g, nil
	}
	if uint64(n) >= v.super.Groups() {
		return nil, fmt.Errorf("group %d does not exist", n)
	}
	home, offset := v.super.DescriptorLocation(n)
	b, err := v.block(home)
	if err != nil {
		return nil, err
	}
	g, err := v.super.ParseGroup(n, b[offset:offset+int(v.super.DescSize)])
	if err != nil {
		return nil, err
	}
	if !v.super.Contains(g.BlockBitmap, 1) || !v.super.Contains(g.InodeBitmap, 1) {
		return nil, fmt.Errorf("group %d has its bitmaps in blocks %d and %d, outside of the file system", n, g.BlockBitmap, g.InodeBitmap)
	}
	if !v.protected() {
		g.Flags, g.UnusedInodes = 0, 0 // without a checksum they have no meaning
	}
	if g.UnusedInodes > v.super.InodesPerGroup {
		return nil, fmt.Errorf("group %d has a bg_itable_unused of %d, with %d inodes", n, g.UnusedInodes, v.super.InodesPerGroup)
	}
	v.groups[n] = g
	return g, nil
}

// protected reports whether group descriptors have checksums. Without them, some
// fields of a descriptor have no meaning.
func (v *view) protected() bool {
	return v.super.ROCompat&(ext4.ROCompatGDTCsum|ext4.ROCompatMetadataCsum) != 0
}

// unused returns how many inodes at the end of a group's table do not count.
func (v *view) unused(g *ext4.Group) uint32 {
	if g.Flags&ext4.GroupInodeUninit != 0 {
		return v.super.InodesPerGroup
	}
	return g.UnusedInodes
}

// inode returns the bytes of an inode and whether it is allocated.
func (v *view) inode(n addr.Ino) ([]byte, bool, error) {
	number, block, offset, err := v.super.InodeLocation(n)
	if err != nil {
		return nil, false, err
	}
	if v.last.group == nil || v.last.group.Number != number {
		g, err := v.group(number)
		if err != nil {
			return nil, false, err
		}
		if v.last.bits, err = v.inodeMap(number); err != nil {
			return nil, false, err
		}
		v.last.group = g
	}
	b, err := v.block(v.last.group.InodeTable + addr.Block(block))
	if err != nil {
		return nil, false, err
	}
	return b[offset : offset+int(v.super.InodeSize)], v.last.bits.has(uint64(n-1) % uint64(v.super.InodesPerGroup)), nil
}

// load returns an inode that is allocated. If it is not, the error wraps errFree.
func (v *view) load(n addr.Ino) (*ext4.Inode, error) {
	raw, allocated, err := v.inode(n)
	switch {
	case err != nil:
		return nil, err
	case !allocated:
		return nil, fmt.Errorf("inode %d: %w", n, errFree)
	}
	return v.super.ParseInode(n, raw)
}

// errFree says that an inode is not allocated.
var errFree = errors.New("inode is free")
