package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// maxFlex bounds how many groups have their bitmaps and tables together.
const maxFlex = 1 << 12

// tableBlock is a block of an inode table that is among the changed ones.
type tableBlock struct {
	block addr.Block
	first addr.Ino // first inode in it
	same  bool     // it was written again without a change
}

// region holds the locations of the bitmaps and the inode tables of some groups.
type region struct {
	blockBitmaps, inodeBitmaps map[addr.Block]uint32 // the group, by block
	tables                     []*ext4.Group
}

// classify finds out which of the changed blocks differ at all, and identifies the
// descriptors and the blocks that they locate. The other blocks belong to inodes,
// and are unclaimed until an inode claims them.
func (c *checker) classify(changed map[addr.Block][]byte) {
	regions := make(map[uint64]*region)
	super, _ := c.new.super.Location()
	for _, b := range sorted(changed) {
		before, err := c.old.block(b)
		if !c.note(err) {
			return
		}
		after, err := c.against.block(b)
		if !c.note(err) {
			return
		}
		if bytes.Equal(before, after) {
			c.again(b, regions)
			continue
		}
		c.different[b] = struct{}{}
		if b == super {
			continue // superblock has compared it
		}
		if !c.note(c.identify(b, before, changed[b], regions)) {
			return
		}
	}
}

// identify says what a changed block is.
func (c *checker) identify(b addr.Block, before, after []byte, regions map[uint64]*region) error {
	s := &c.new.super
	if uint64(b) < uint64(s.FirstDataBlock) {
		return fmt.Errorf("block %d changes, which is before s_first_data_block", b)
	}
	if first, ok := c.describes(b); ok {
		return c.compareDescriptors(first, before, after)
	}
	group, _ := groupOf(s, b)
	r, err := c.region(uint64(group)/s.FlexSize, regions)
	if err != nil {
		return err
	}
	if group, ok := r.blockBitmaps[b]; ok {
		c.groups[group] = struct{}{}
		return nil
	}
	if group, ok := r.inodeBitmaps[b]; ok {
		c.groups[group] = struct{}{}
		return nil
	}
	if t, ok := r.table(s, b); ok {
		c.tables = append(c.tables, t)
		return nil
	}
	c.unclaimed = append(c.unclaimed, b) // in order
	return nil
}

// again takes a block that was written without a change, if it is in an inode table: its inodes may own blocks that change.
func (c *checker) again(b addr.Block, regions map[uint64]*region) {
	s := &c.new.super
	if uint64(b) < uint64(s.FirstDataBlock) {
		return
	}
	group, _ := groupOf(s, b)
	r, err := c.region(uint64(group)/s.FlexSize, regions)
	if err != nil {
		return // a region of which nothing changes is not judged
	}
	if t, ok := r.table(s, b); ok {
		t.same = true
		c.tables = append(c.tables, t)
	}
}

// table says which inodes are in a block; false if the block is in none of the region's inode tables.
func (r *region) table(s *ext4.Super, b addr.Block) (tableBlock, bool) {
	for _, g := range r.tables {
		if b >= g.InodeTable && uint64(b-g.InodeTable) < tableBlocks(s) {
			perBlock := s.BlockSize / uint32(s.InodeSize)
			first := addr.Ino(g.Number)*addr.Ino(s.InodesPerGroup) + addr.Ino(b-g.InodeTable)*addr.Ino(perBlock) + 1
			return tableBlock{block: b, first: first}, true
		}
	}
	return tableBlock{}, false
}

// describes returns the first group whose descriptor is in a block; false if the block has
// no descriptors.
func (c *checker) describes(b addr.Block) (uint32, bool) {
	s := &c.new.super
	group, _ := groupOf(s, b)
	perBlock := s.BlockSize / uint32(s.DescSize)
	for _, first := range []uint64{uint64(group) / uint64(perBlock) * uint64(perBlock), c.descriptors(b)} {
		if home, _ := s.DescriptorLocation(uint32(first)); first < s.Groups() && home == b {
			return uint32(first), true
		}
	}
	return 0, false
}

// descriptors returns the first group whose descriptor is in a block, if descriptors
// follow the superblock, as all of them do without meta_bg.
func (c *checker) descriptors(b addr.Block) uint64 {
	s := &c.new.super
	super, _ := s.Location()
	if b <= super {
		return s.Groups()
	}
	return uint64(b-super-1) * uint64(s.BlockSize/uint32(s.DescSize))
}

// region returns the locations of the bitmaps and tables of the groups in flex group n,
// and of groups elsewhere that have some of theirs among them (see apart).
func (c *checker) region(n uint64, regions map[uint64]*region) (*region, error) {
	if r, ok := regions[n]; ok {
		return r, nil
	}
	s := &c.old.super
	if min(s.FlexSize, s.Groups()) > maxFlex {
		return nil, foreignf("%d groups have their bitmaps together: not understood", s.FlexSize)
	}
	strays, err := c.apart()
	if err != nil {
		return nil, err
	}
	groups := slices.Clone(strays[n])
	for group := n * s.FlexSize; group < min((n+1)*s.FlexSize, s.Groups()); group++ {
		groups = append(groups, uint32(group))
	}
	r := &region{blockBitmaps: make(map[addr.Block]uint32), inodeBitmaps: make(map[addr.Block]uint32)}
	for _, group := range groups {
		g, err := c.old.group(group)
		if err != nil {
			return nil, err
		}
		r.blockBitmaps[g.BlockBitmap] = g.Number
		r.inodeBitmaps[g.InodeBitmap] = g.Number
		r.tables = append(r.tables, g)
	}
	regions[n] = r
	return r, nil
}

// maxApart bounds the number of groups that apart looks at: as many as 128 TiB have with blocks of 4 KiB.
const maxApart = 1 << 20

// apart returns the groups that have a bitmap or a part of their table in another flex group, by the number of that
// flex group: mke2fs -E packed_meta_blocks puts all bitmaps and tables at the beginning, and resize2fs(8) and
// e2fsck(8) move them to where there is room. It reads all descriptors.
func (c *checker) apart() (map[uint64][]uint32, error) {
	s := &c.old.super
	if c.strays != nil || s.Groups() <= s.FlexSize || s.Groups() > maxApart {
		return c.strays, nil
	}
	c.strays = make(map[uint64][]uint32)
	b := make([]byte, s.BlockSize)
	size := int(s.DescSize)
	for n := uint32(0); uint64(n) < s.Groups(); {
		home, offset := s.DescriptorLocation(n)
		if read, err := c.old.disk.ReadAt(b, int64(home)*int64(len(b))); read < len(b) {
			return nil, &readError{fmt.Errorf("read block %d: %w", home, err)}
		}
		for ; offset < len(b) && uint64(n) < s.Groups(); offset, n = offset+size, n+1 {
			own := s.GroupBlocks(b[offset : offset+size])
			for _, at := range []addr.Block{own[0], own[1], own[2], own[2] + addr.Block(tableBlocks(s)) - 1} {
				if !s.Contains(at, 1) {
					continue // the group will be refused when it is looked at
				}
				group, _ := groupOf(s, at)
				there := uint64(group) / s.FlexSize
				if all := c.strays[there]; there != uint64(n)/s.FlexSize && (len(all) == 0 || all[len(all)-1] != n) {
					c.strays[there] = append(all, n)
				}
			}
		}
	}
	return c.strays, nil
}

// compareDescriptors checks that the descriptors in a block differ only in counts, and in
// flags that say that something was initialised.
func (c *checker) compareDescriptors(first uint32, before, after []byte) error {
	s := &c.new.super
	size := int(s.DescSize)
	for at := 0; at+size <= len(after); at += size {
		n := uint64(first) + uint64(at/size)
		if bytes.Equal(before[at:at+size], after[at:at+size]) {
			continue
		}
		if n >= s.Groups() {
			return fmt.Errorf("a descriptor changes for group %d, which does not exist", n)
		}
		old, err := c.old.group(uint32(n))
		if err != nil {
			return err
		}
		g, err := c.new.group(uint32(n))
		if err != nil {
			return err
		}
		if g.BlockBitmap != old.BlockBitmap || g.InodeBitmap != old.InodeBitmap || g.InodeTable != old.InodeTable || !c.sameRest(before[at:at+size], after[at:at+size]) {
			return fmt.Errorf("the bitmaps or the inode table of group %d move", n)
		}
		if err := c.compareFlags(g.Number, before[at:at+size], after[at:at+size]); err != nil {
			return err
		}
		c.groups[g.Number] = struct{}{}
	}
	return nil
}

// compareFlags checks that bg_flags changes only when something is initialised. Without checksums of descriptors the
// flags for what is uninitialised have no meaning and must not change; but a kernel notes tables that it has zeroed there,
// too (fs/ext4/super.c, ext4lazyinit).
func (c *checker) compareFlags(group uint32, before, after []byte) error {
	was, is := ext4.GroupFlags(binary.LittleEndian.Uint16(before[0x12:])), ext4.GroupFlags(binary.LittleEndian.Uint16(after[0x12:]))
	var mayGo ext4.GroupFlags
	if c.new.protected() {
		mayGo = ext4.GroupInodeUninit | ext4.GroupBlockUninit
	}
	if was&^is&^mayGo != 0 || is&^was&^ext4.GroupInodeZeroed != 0 {
		return fmt.Errorf("the flags of group %d go from %#x to %#x", group, was, is)
	}
	return nil
}

// sameRest reports whether two descriptors are equal in the fields that are not judged elsewhere: the
// location of the exclude bitmap for snapshots, which nobody uses, the reserved fields, and the fields
// that have no meaning without checksums of descriptors.
func (c *checker) sameRest(a, b []byte) bool {
	if !bytes.Equal(a[0x14:0x18], b[0x14:0x18]) {
		return false
	}
	if !c.new.protected() {
		return bytes.Equal(a[0x14:], b[0x14:]) || len(a) >= 64 && bytes.Equal(a[0x14:0x2c], b[0x14:0x2c]) && bytes.Equal(a[0x32:], b[0x32:])
	}
	return len(a) < 64 || bytes.Equal(a[0x34:0x38], b[0x34:0x38]) && bytes.Equal(a[0x3c:], b[0x3c:])
}

// slots touches the inodes that differ.
func (c *checker) slots() {
	for s := range c.changedSlots() {
		if !c.note(c.touch(s.Ino)) {
			return
		}
	}
}

// Slot is the place of an inode in an inode table.
type Slot struct {
	Ino    addr.Ino
	Block  addr.Block
	Offset int // in the block, in bytes
}

// changedSlots yields the slots whose bytes differ, until note says not to go on.
func (c *checker) changedSlots() iter.Seq[Slot] {
	return func(yield func(Slot) bool) {
		size := int(c.new.super.InodeSize)
		for _, t := range c.tables {
			if t.same {
				continue
			}
			before, err := c.old.block(t.block)
			if !c.note(err) {
				return
			}
			after, err := c.against.block(t.block)
			if !c.note(err) {
				return
			}
			for at := 0; at+size <= len(after); at += size {
				s := Slot{t.first + addr.Ino(at/size), t.block, at}
				if !bytes.Equal(before[at:at+size], after[at:at+size]) && !yield(s) {
					return
				}
			}
		}
	}
}

// tornInode reports whether an inode has a wrong checksum. An inode of zeros is not torn: when the kernel is about to
// write the first inode in use in a block of the table, it does not read the block, and has zeros in place of the
// inodes that were freed (fs/ext4/inode.c, ext4_get_inode_loc).
func tornInode(s *ext4.Super, n addr.Ino, raw []byte) bool {
	_, err := s.ParseInode(n, raw)
	return errors.Is(err, ext4.ErrChecksum) && !zero(raw)
}

// Torn returns the inodes that have a wrong checksum in the changed blocks: they were
// being written (fs/ext4/inode.c, ext4_do_update_inode). Its arguments are those of
// Check.
func Torn(old io.ReaderAt, changed map[addr.Block][]byte) ([]Slot, error) {
	fs, err := ext4.Open(old)
	if err != nil {
		return nil, fmt.Errorf("look for torn inodes: %w", err)
	}
	c := newChecker(fs.Super, old, changed)
	c.classify(changed)
	var torn []Slot
	for s := range c.changedSlots() {
		if tornInode(&fs.Super, s.Ino, changed[s.Block][s.Offset:][:fs.Super.InodeSize]) {
			torn = append(torn, s)
		}
	}
	if c.failed != nil {
		return nil, fmt.Errorf("look for torn inodes: %w", c.failed)
	}
	return torn, nil
}
