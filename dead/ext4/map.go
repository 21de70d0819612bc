package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// ErrHole says that no block is mapped there.
var ErrHole = errors.New("a hole")

// Run is a part of a file that is contiguous on the disk.
type Run struct {
	Logical   uint32     // first block, within the file
	Physical  addr.Block // first block, on the disk
	Length    uint32     // in blocks, at least 1
	Unwritten bool       // allocated, but reads as zeros
}

// MaxRun is the maximum length of an extent, in blocks; that of an unwritten extent is one
// less (fs/ext4/ext4_extents.h, EXT_INIT_MAX_LEN).
const MaxRun = 1 << 15

// Index is an index entry of an extent tree node: the first block of the file that the
// child node covers, and the block that the child is in.
type Index struct {
	Logical uint32
	Node    addr.Block
}

// Skip returns the run without its first n blocks. It must have more than n.
func (r Run) Skip(n uint32) Run {
	r.Logical, r.Physical, r.Length = r.Logical+n, r.Physical+addr.Block(n), r.Length-n
	return r
}

// Map returns the run of blocks that an inode has from a logical block on, as far as
// one extent or one block of pointers maps it contiguously. If that block is not
// mapped, the error wraps ErrHole.
func (f *FS) Map(i *Inode, logical uint32) (Run, error) {
	var r Run
	var err error
	switch {
	case i.Flags&InodeInlineData != 0:
		err = errors.New("its data is in the inode")
	case i.Flags&InodeExtents != 0:
		r, err = f.mapExtent(i, logical)
	default:
		r, err = f.mapIndirect(i, logical)
	}
	if err != nil {
		return r, fmt.Errorf("map block %d of inode %d: %w", logical, i.Number, err)
	}
	return r, nil
}

const (
	// ExtentMagic is the magic number at the start of an extent tree node (EXT4_EXT_MAGIC).
	ExtentMagic = 0xf30a
	// ExtentMaxDepth is the maximum depth of an extent tree
	// (EXT4_MAX_EXTENT_DEPTH).
	ExtentMaxDepth = 5
	// ExtentSize is the size of a node's header, of an index entry, and of an
	// extent, in bytes.
	ExtentSize = 12
)

// mapExtent walks down the extent tree (fs/ext4/extents.c).
func (f *FS) mapExtent(i *Inode, logical uint32) (Run, error) {
	node := i.Block[:]
	depth := int(binary.LittleEndian.Uint16(node[6:]))
	if depth > ExtentMaxDepth {
		return Run{}, fmt.Errorf("tree of depth %d", depth)
	}
	var from *uint32 // the node's first block by the index entry above it
	for level := depth; ; level-- {
		entries, err := ExtentEntries(node, level)
		if err != nil {
			return Run{}, fmt.Errorf("level %d of the tree: %w", level, err)
		}
		if from != nil && len(entries) > 0 && binary.LittleEndian.Uint32(entries) != *from {
			return Run{}, fmt.Errorf("level %d of the tree begins with block %d instead of %d", level, binary.LittleEndian.Uint32(entries), *from)
		}
		entry, err := f.chooseEntry(entries, level, logical)
		if err != nil {
			return Run{}, err
		}
		if level == 0 {
			return f.extentRun(entry, logical)
		}
		first := binary.LittleEndian.Uint32(entry)
		below := addr.Block(binary.LittleEndian.Uint32(entry[4:])) | addr.Block(binary.LittleEndian.Uint16(entry[8:]))<<32
		if node, err = f.extentBlock(i, below); err != nil {
			return Run{}, err
		}
		from = &first
	}
}

// ExtentEntries checks the header of a node and returns its entries.
func ExtentEntries(node []byte, level int) ([]byte, error) {
	u16 := func(off int) int { return int(binary.LittleEndian.Uint16(node[off:])) }
	room := len(node)/ExtentSize - 1
	switch n := u16(2); {
	case u16(0) != ExtentMagic:
		return nil, fmt.Errorf("magic %#x", u16(0))
	case u16(6) != level:
		return nil, fmt.Errorf("eh_depth is %d, not %d", u16(6), level)
	case u16(4) == 0 || u16(4) > room:
		return nil, fmt.Errorf("room for %d entries instead of %d", u16(4), room)
	case n > u16(4) || n == 0 && level > 0:
		return nil, fmt.Errorf("%d entries in room for %d", n, u16(4))
	default:
		return node[ExtentSize : ExtentSize*(1+n)], nil
	}
}

// chooseEntry returns the last entry that does not begin after logical. The
// entries must be in ascending order and must not overlap.
func (f *FS) chooseEntry(entries []byte, level int, logical uint32) ([]byte, error) {
	var chosen []byte
	end := uint64(0) // of the previous entry
	for at := 0; at < len(entries); at += ExtentSize {
		e := entries[at : at+ExtentSize]
		first := binary.LittleEndian.Uint32(e)
		if uint64(first) < end {
			return nil, fmt.Errorf("level %d of the tree: block %d after block %d", level, first, end-1)
		}
		end = uint64(first) + 1
		if level == 0 {
			length, _ := ExtentLength(e)
			end = uint64(first) + uint64(length)
		}
		if first <= logical {
			chosen = e
		}
	}
	if chosen == nil {
		return nil, ErrHole
	}
	return chosen, nil
}

// ExtentLength returns the length of an extent, and whether it is unwritten
// (fs/ext4/ext4_extents.h, EXT_INIT_MAX_LEN).
func ExtentLength(e []byte) (length uint32, unwritten bool) {
	n := uint32(binary.LittleEndian.Uint16(e[4:]))
	if n > 1<<15 {
		return n - 1<<15, true
	}
	return n, false
}

// extentRun returns the run that an extent maps from logical on.
func (f *FS) extentRun(e []byte, logical uint32) (Run, error) {
	first := binary.LittleEndian.Uint32(e)
	length, unwritten := ExtentLength(e)
	start := addr.Block(binary.LittleEndian.Uint32(e[8:])) | addr.Block(binary.LittleEndian.Uint16(e[6:]))<<32
	if length == 0 || uint64(first)+uint64(length) > 1<<32 || !f.Super.Contains(start, uint64(length)) {
		return Run{}, fmt.Errorf("bad extent: %d blocks at block %d", length, start)
	}
	skip := logical - first
	if skip >= length {
		return Run{}, ErrHole
	}
	return Run{Logical: first, Physical: start, Length: length, Unwritten: unwritten}.Skip(skip), nil
}

// extentBlock reads a node of the tree that has a block of its own, and verifies
// its checksum.
func (f *FS) extentBlock(i *Inode, b addr.Block) ([]byte, error) {
	if !f.Super.Contains(b, 1) {
		return nil, fmt.Errorf("the extent tree has a node at block %d, outside of the file system", b)
	}
	node, err := f.Block(b)
	if err != nil {
		return nil, err
	}
	if err := f.Super.CheckExtentBlock(i, node); err != nil {
		return nil, fmt.Errorf("node of the tree at block %d: %w", b, err)
	}
	return node, nil
}

// CheckExtentBlock verifies the checksum of a node of an inode's extent tree, if
// nodes have checksums. The checksum follows the room for entries.
func (s *Super) CheckExtentBlock(i *Inode, node []byte) error {
	if !s.Checksummed() {
		return nil
	}
	tail, err := extentTail(node)
	if err != nil {
		return err
	}
	if want, got := binary.LittleEndian.Uint32(node[tail:]), CRC32C(i.Seed, node[:tail]); want != got {
		return fmt.Errorf("%w: %#x instead of %#x", ErrChecksum, got, want)
	}
	return nil
}

// SealExtentBlock computes the checksum of a node of an inode's extent tree and stores it
// there, if nodes have checksums.
func (s *Super) SealExtentBlock(i *Inode, node []byte) error {
	if !s.Checksummed() {
		return nil
	}
	tail, err := extentTail(node)
	if err == nil {
		binary.LittleEndian.PutUint32(node[tail:], CRC32C(i.Seed, node[:tail]))
	}
	return err
}

// extentTail returns the offset of a node's checksum.
func extentTail(node []byte) (int, error) {
	tail := ExtentSize * (1 + int(binary.LittleEndian.Uint16(node[4:])))
	if tail > len(node)-4 {
		return 0, errors.New("no room for its checksum")
	}
	return tail, nil
}

// mapIndirect goes through the indirect blocks of a file without extents
// (fs/ext4/indirect.c, ext4_block_to_path): 12 blocks in the inode, then
// one, two and three levels of blocks of pointers.
func (f *FS) mapIndirect(i *Inode, logical uint32) (Run, error) {
	perBlock := uint64(f.Super.BlockSize / 4)
	pointers, index := i.Block[:48], uint64(logical)
	if index >= 12 {
		index -= 12
		levels, span := 1, perBlock // blocks that a pointer in the inode reaches
		for index >= span && levels < 3 {
			index -= span
			levels, span = levels+1, span*perBlock
		}
		if index >= span {
			return Run{}, errors.New("beyond what indirect blocks reach")
		}
		pointers = i.Block[48+4*(levels-1):][:4]
		for ; levels > 0; levels-- {
			b := addr.Block(binary.LittleEndian.Uint32(pointers[4*(index/span):]))
			index %= span
			span /= perBlock
			if b == 0 {
				return Run{}, ErrHole
			}
			if !f.Super.Contains(b, 1) {
				return Run{}, fmt.Errorf("the indirect block %d is outside of the file system", b)
			}
			var err error
			if pointers, err = f.Block(b); err != nil {
				return Run{}, err
			}
		}
	}
	return f.pointerRun(pointers, index, logical)
}

// pointerRun returns the run that pointers map, beginning with the one at index.
func (f *FS) pointerRun(pointers []byte, index uint64, logical uint32) (Run, error) {
	at := func(n uint64) addr.Block { return addr.Block(binary.LittleEndian.Uint32(pointers[4*n:])) }
	r := Run{Logical: logical, Physical: at(index), Length: 1}
	if r.Physical == 0 {
		return Run{}, ErrHole
	}
	for n := index + 1; n < uint64(len(pointers)/4) && at(n) == r.Physical+addr.Block(r.Length); n++ {
		r.Length++
	}
	if !f.Super.Contains(r.Physical, uint64(r.Length)) {
		return Run{}, fmt.Errorf("%d blocks at block %d are outside of the file system", r.Length, r.Physical)
	}
	return r, nil
}
