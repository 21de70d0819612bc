package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// extent is a part of a file that is contiguous on the disk.
type extent struct {
	logical   uint64
	start     addr.Block
	length    uint64
	unwritten bool
}

// leaf is a block at the bottom of a tree: it maps the blocks [from, to) of the
// file.
type leaf struct {
	block    addr.Block
	from, to uint64
}

// mapping is how a file is mapped, as far as that was read.
type mapping struct {
	nodes   []addr.Block // of the tree, without the leaves that were left out
	leaves  []leaf       // all that have a block of their own
	extents []extent     // in the leaves that were not left out
	count   uint64       // blocks of nodes and extents
}

const (
	maxExtents  = 1 << 32 // blocks that extents can map
	inodeBlocks = 12      // pointers in an inode without extents (EXT4_NDIR_BLOCKS)
)

// mapper walks the mapping of an inode in one view.
type mapper struct {
	v     *view
	inode *ext4.Inode
	out   mapping
	spare map[leaf]struct{}
	// torn, if it is not nil, receives the changed nodes whose checksum is wrong, with
	// the right checksum. If it is nil, such a node is an error.
	torn map[addr.Block][]byte
}

// Trees are the block mapping of a file, in runs that ascend, without and with the changed
// blocks.
type Trees struct {
	Old, New []ext4.Run
	// Blocks counts all blocks of the file with the changes: data, nodes of the tree, and
	// attributes; in whole clusters, as i_blocks does.
	Blocks uint64
	// Touched says that a part of the tree is among the changed blocks.
	Touched bool
	// Indirect says that both mappings are of indirect blocks, if they are of any: not of extents, and no data is in the inode.
	Indirect bool
	// Torn are changed extent nodes whose checksum is wrong, since they were being written.
	// Here they have the right one, as e2fsck(8) would give it to them.
	Torn map[addr.Block][]byte
}

// Mapper tells how files are mapped without and with some changed blocks. It may be used for as long as the groups
// and inodes in these blocks do not change.
type Mapper struct {
	c       *checker
	changed map[addr.Block][]byte
}

// NewMapper opens the file system on a disk. Its arguments are those of Check.
func NewMapper(old io.ReaderAt, changed map[addr.Block][]byte) (*Mapper, error) {
	fs, err := ext4.Open(old)
	if err != nil {
		return nil, fmt.Errorf("map files: %w", err)
	}
	return &Mapper{newChecker(fs.Super, old, changed), changed}, nil
}

// Tree walks the extent tree, or the indirect blocks, of a regular file or directory. An error means
// that the tree cannot be read, or contradicts itself.
func (m *Mapper) Tree(n addr.Ino) (*Trees, error) {
	c := m.c
	c.budget.renew(len(m.changed)) // the budget is for one file
	was, err := c.old.tree(n, nil)
	if errors.Is(err, errFree) {
		was, err = &mapper{inode: &ext4.Inode{}}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("map inode %d without the changes: %w", n, err)
	}
	torn := make(map[addr.Block][]byte)
	is, err := c.new.tree(n, torn)
	if err != nil {
		return nil, fmt.Errorf("map inode %d: %w", n, err)
	}
	all := &state{Inode: is.inode, file: is.out}
	if err := all.count(ratio(&c.new.super)); err != nil {
		return nil, fmt.Errorf("map inode %d: %w", n, err)
	}
	t := &Trees{Old: was.out.runs(), New: is.out.runs(), Blocks: c.blocks(all), Touched: was.inode.Block != is.inode.Block, Torn: torn}
	t.Indirect = (was.inode.Flags|is.inode.Flags)&(ext4.InodeExtents|ext4.InodeInlineData) == 0
	for _, b := range is.out.nodes {
		_, there := m.changed[b]
		t.Touched = t.Touched || there
	}
	return t, nil
}

// tree walks the whole mapping of an inode.
func (v *view) tree(n addr.Ino, torn map[addr.Block][]byte) (*mapper, error) {
	i, err := v.load(n)
	if err != nil {
		return nil, err
	}
	m := &mapper{v: v, inode: i, torn: torn}
	if i.Flags&ext4.InodeInlineData != 0 {
		return m, nil
	}
	if err := m.index(); err != nil {
		return nil, err
	}
	return m, m.read()
}

// runs returns the extents that were seen.
func (m *mapping) runs() []ext4.Run {
	out := make([]ext4.Run, len(m.extents))
	for i, x := range m.extents {
		out[i] = ext4.Run{Logical: uint32(x.logical), Physical: x.start, Length: uint32(x.length), Unwritten: x.unwritten}
	}
	return out
}

// walk maps an inode in both views. It leaves out leaves that are the same in
// both, unless whole asks for all leaves, or leaves may share clusters.
func (c *checker) walk(i *inode, whole bool) error {
	var both [2]mapper
	var maps [2]*mapper
	for at, s := range [...]*state{i.old, i.new} {
		if s == nil || !c.mapped(s) {
			continue
		}
		m := &both[at]
		m.v, m.inode = [...]*view{c.old, c.new}[at], s.Inode
		if at == 1 {
			m.torn = c.torn
		}
		if err := m.index(); err != nil {
			return fmt.Errorf("inode %d: %w", i.number, err)
		}
		maps[at] = m
	}
	if o, n := maps[0], maps[1]; o != nil && n != nil && !whole && ratio(&c.new.super) == 1 && i.old.Generation == i.new.Generation && (i.old.Flags^i.new.Flags)&ext4.InodeExtents == 0 {
		same := c.common(o, n, i.new)
		o.spare, n.spare = same, same
	}
	for at, s := range [...]*state{i.old, i.new} {
		if m := maps[at]; m != nil {
			if err := m.read(); err != nil {
				return fmt.Errorf("inode %d: %w", i.number, err)
			}
			s.file = m.out
			if err := s.count(ratio(&c.new.super)); err != nil {
				return fmt.Errorf("inode %d: %w", i.number, err)
			}
		}
	}
	return nil
}

// common returns the leaves that are the same in both trees, have the same
// content, and map nothing behind the end of the file.
func (c *checker) common(o, n *mapper, s *state) map[leaf]struct{} {
	if len(o.out.leaves) == 0 {
		return nil
	}
	end := (s.Size + uint64(c.new.super.BlockSize) - 1) / uint64(c.new.super.BlockSize)
	before := make(map[leaf]struct{}, len(o.out.leaves))
	for _, l := range o.out.leaves {
		before[l] = struct{}{}
	}
	same := make(map[leaf]struct{})
	for _, l := range n.out.leaves {
		_, there := before[l]
		if there && !c.changed(l.block) && l.to <= end {
			same[l] = struct{}{}
		}
	}
	return same
}

// index walks the mapping down to the level above the leaves.
func (m *mapper) index() error {
	if m.inode.Flags&ext4.InodeExtents == 0 {
		return m.indexPointers()
	}
	level := int(binary.LittleEndian.Uint16(m.inode.Block[6:]))
	if level > ext4.ExtentMaxDepth {
		return fmt.Errorf("its tree has %d levels", level)
	}
	return m.indexExtents(m.inode.Block[:], level, 0, maxExtents)
}

// indexExtents walks a node that maps [from, to).
func (m *mapper) indexExtents(node []byte, level int, from, to uint64) error {
	if level == 0 {
		return m.readExtents(node, from, to) // the inode itself
	}
	entries, err := ext4.ExtentEntries(node, level)
	if err != nil {
		return fmt.Errorf("level %d of its tree: %w", level, err)
	}
	for at := 0; at < len(entries); at += ext4.ExtentSize {
		e := entries[at : at+ext4.ExtentSize]
		first, next := uint64(binary.LittleEndian.Uint32(e)), to
		if at+ext4.ExtentSize < len(entries) {
			next = uint64(binary.LittleEndian.Uint32(entries[at+ext4.ExtentSize:]))
		}
		if first < from || first >= next || next > to {
			return fmt.Errorf("level %d of its extent tree has an entry for blocks [%d, %d), which does not fit into [%d, %d)", level, first, next, from, to)
		}
		below := addr.Block(binary.LittleEndian.Uint32(e[4:])) | addr.Block(binary.LittleEndian.Uint16(e[8:]))<<32
		if !m.v.super.Contains(below, 1) {
			return fmt.Errorf("level %d of its extent tree points to block %d, outside of the file system", level, below)
		}
		if level == 1 {
			m.leaf(leaf{below, first, next})
			continue
		}
		node, err := m.extentNode(below, level-1, first)
		if err != nil {
			return err
		}
		if err := m.indexExtents(node, level-1, first, next); err != nil {
			return err
		}
	}
	return nil
}

// leaf adds a leaf, to be read later.
func (m *mapper) leaf(l leaf) {
	m.out.leaves = append(m.out.leaves, l)
	m.out.count++
}

// extentNode reads a node from its block b. It must begin with block first of the file.
func (m *mapper) extentNode(b addr.Block, level int, first uint64) ([]byte, error) {
	node, err := m.v.block(b)
	if err != nil {
		return nil, err
	}
	err = m.v.super.CheckExtentBlock(m.inode, node)
	if _, changed := m.v.over[b]; changed && m.torn != nil && errors.Is(err, ext4.ErrChecksum) {
		m.torn[b] = slices.Clone(node)
		err = m.v.super.SealExtentBlock(m.inode, m.torn[b])
	}
	if err != nil {
		return nil, fmt.Errorf("node of its tree at block %d: %w", b, err)
	}
	entries, err := ext4.ExtentEntries(node, level)
	if err != nil {
		return nil, fmt.Errorf("node of its tree at block %d: %w", b, err)
	}
	if room := int(binary.LittleEndian.Uint16(node[4:])); len(entries) == 0 || uint64(binary.LittleEndian.Uint32(entries)) != first ||
		room < len(node)/ext4.ExtentSize-3 { // lib/ext2fs/extent.c, ext2fs_extent_header_verify
		return nil, fmt.Errorf("node of its tree at block %d does not begin with block %d", b, first)
	}
	if level > 0 {
		m.out.nodes = append(m.out.nodes, b)
		m.out.count++
	}
	return node, nil
}

// read reads the leaves that are not spared.
func (m *mapper) read() error {
	for _, l := range m.out.leaves {
		if _, ok := m.spare[l]; ok {
			continue
		}
		m.out.nodes = append(m.out.nodes, l.block)
		if m.inode.Flags&ext4.InodeExtents == 0 {
			node, err := m.v.block(l.block)
			if err != nil {
				return err
			}
			if err := m.readPointers(node, l.from); err != nil {
				return err
			}
			continue
		}
		node, err := m.extentNode(l.block, 0, l.from)
		if err != nil {
			return err
		}
		if err := m.readExtents(node, l.from, l.to); err != nil {
			return fmt.Errorf("node of its tree at block %d: %w", l.block, err)
		}
	}
	return nil
}

// readExtents adds the extents of a leaf, which must lie in [from, to).
func (m *mapper) readExtents(node []byte, from, to uint64) error {
	entries, err := ext4.ExtentEntries(node, 0)
	if err != nil {
		return err
	}
	if err := m.v.budget.spend(len(entries) / ext4.ExtentSize); err != nil {
		return err
	}
	for at := 0; at < len(entries); at += ext4.ExtentSize {
		e := entries[at : at+ext4.ExtentSize]
		length, unwritten := ext4.ExtentLength(e)
		x := extent{
			logical: uint64(binary.LittleEndian.Uint32(e)), length: uint64(length), unwritten: unwritten,
			start: addr.Block(binary.LittleEndian.Uint32(e[8:])) | addr.Block(binary.LittleEndian.Uint16(e[6:]))<<32,
		}
		if x.length == 0 || x.logical < from || x.logical+x.length > to || !m.v.super.Contains(x.start, x.length) {
			return fmt.Errorf("bad extent: %d blocks at block %d for logical block %d, in a node for [%d, %d)", x.length, x.start, x.logical, from, to)
		}
		from = x.logical + x.length
		m.out.extents = append(m.out.extents, x)
		m.out.count += x.length
	}
	return nil
}

// indexPointers walks an inode without extents: pointers to 12 blocks, and to one,
// two and three levels of blocks of pointers (fs/ext4/indirect.c).
func (m *mapper) indexPointers() error {
	if err := m.readPointers(m.inode.Block[:4*inodeBlocks], 0); err != nil {
		return err
	}
	perBlock := uint64(m.v.super.BlockSize / 4)
	from, span := uint64(inodeBlocks), perBlock
	for level := 1; level <= 3; level++ {
		b := addr.Block(binary.LittleEndian.Uint32(m.inode.Block[4*(inodeBlocks+level-1):]))
		if err := m.indexPointer(b, level, from, span); err != nil {
			return err
		}
		from += span
		span *= perBlock
	}
	return nil
}

// indexPointer walks a block of pointers that maps span blocks.
func (m *mapper) indexPointer(b addr.Block, level int, from, span uint64) error {
	if b == 0 {
		return nil
	}
	if !m.v.super.Contains(b, 1) {
		return fmt.Errorf("its indirect block %d is outside of the file system", b)
	}
	if level == 1 {
		m.leaf(leaf{b, from, from + span})
		return nil
	}
	m.out.nodes = append(m.out.nodes, b)
	m.out.count++
	node, err := m.v.block(b)
	if err != nil {
		return err
	}
	span /= uint64(len(node) / 4)
	for at := 0; at < len(node); at += 4 {
		if err := m.indexPointer(addr.Block(binary.LittleEndian.Uint32(node[at:])), level-1, from, span); err != nil {
			return err
		}
		from += span
	}
	return nil
}

// readPointers adds the blocks that pointers map.
func (m *mapper) readPointers(pointers []byte, from uint64) error {
	for at := 0; at < len(pointers); at += 4 {
		b := addr.Block(binary.LittleEndian.Uint32(pointers[at:]))
		if b == 0 {
			continue
		}
		if !m.v.super.Contains(b, 1) {
			return fmt.Errorf("its block %d is mapped to block %d, outside of the file system", from+uint64(at/4), b)
		}
		logical := from + uint64(at/4)
		m.out.count++
		if n := len(m.out.extents); n > 0 {
			if last := &m.out.extents[n-1]; last.logical+last.length == logical && last.start+addr.Block(last.length) == b {
				last.length++
				continue
			}
		}
		if err := m.v.budget.spend(1); err != nil {
			return err
		}
		m.out.extents = append(m.out.extents, extent{logical: logical, start: b, length: 1})
	}
	return nil
}
