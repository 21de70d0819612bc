package placement

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// maxExtents bounds the extents of one file.
const maxExtents = 1 << 20

// tree is an extent tree. All of its nodes are read; those that change are written.
type tree struct {
	v     *volume
	inode *ext4.Inode
	root  *node
	count int // number of extents
	goal  addr.Block

	first node        // the root as it is on the disk
	runs  [4]ext4.Run // backing of its runs: as many as i_block has room for
}

// node is a node of an extent tree. Leaves are at level 0.
type node struct {
	block addr.Block // 0 if it is the root, or has no block yet
	level int
	first uint32 // block of the file that it begins with
	runs  []ext4.Run
	below []*node
	dirty bool
}

// openTree reads the extent tree of an inode into t, which may have been used for another one.
func (v *volume) openTree(t *tree, i *ext4.Inode) error {
	*t = tree{v: v, inode: i}
	level := int(binary.LittleEndian.Uint16(i.Block[6:]))
	if level > ext4.ExtentMaxDepth {
		return fmt.Errorf("%w: a tree of %d levels", errDamaged, level)
	}
	t.root, t.first.runs = &t.first, t.runs[:0]
	if err := t.read(t.root, i.Block[:], 0, level, 0, 1<<32); err != nil {
		return fmt.Errorf("tree of extents: %w", err)
	}
	return nil
}

// read reads a node that maps [from, to).
func (t *tree) read(n *node, b []byte, block addr.Block, level int, from, to uint64) error {
	entries, err := ext4.ExtentEntries(b, level)
	if err != nil {
		return fmt.Errorf("%w: node at block %d: %w", errDamaged, block, err)
	}
	n.block, n.level, n.first = block, level, uint32(from)
	for at := 0; at < len(entries); at += ext4.ExtentSize {
		e := entries[at : at+ext4.ExtentSize]
		first := uint64(binary.LittleEndian.Uint32(e))
		if first < from || first >= to || at == 0 && block != 0 && first != from {
			return fmt.Errorf("%w: node at block %d has an entry for block %d, which does not fit into [%d, %d)", errDamaged, block, first, from, to)
		}
		if level == 0 {
			length, unwritten := ext4.ExtentLength(e)
			start := addr.Block(binary.LittleEndian.Uint32(e[8:])) | addr.Block(binary.LittleEndian.Uint16(e[6:]))<<32
			if length == 0 || first+uint64(length) > to || !t.v.super.Contains(start, uint64(length)) || !t.v.free(start, length) {
				return fmt.Errorf("%w: bad extent: %d blocks at block %d for logical block %d", errDamaged, length, start, first)
			}
			if t.count++; t.count > maxExtents {
				return refuse("it has more than %d extents", maxExtents)
			}
			n.runs = append(n.runs, ext4.Run{Logical: uint32(first), Physical: start, Length: length, Unwritten: unwritten})
			from = first + uint64(length)
			continue
		}
		end := to
		if at+ext4.ExtentSize < len(entries) {
			end = uint64(binary.LittleEndian.Uint32(entries[at+ext4.ExtentSize:]))
		}
		below := addr.Block(binary.LittleEndian.Uint32(e[4:])) | addr.Block(binary.LittleEndian.Uint16(e[8:]))<<32
		child, err := t.readBlock(below, level-1, first, end)
		if err != nil {
			return err
		}
		n.below = append(n.below, child)
		from = first + 1
	}
	return nil
}

// readBlock reads a node from its own block.
func (t *tree) readBlock(at addr.Block, level int, from, to uint64) (*node, error) {
	if !t.v.super.Contains(at, 1) || !t.v.free(at, 1) || from >= to {
		return nil, fmt.Errorf("%w: an extent tree node at block %d, which is outside of the file system, in its metadata, or empty", errDamaged, at)
	}
	b, err := t.v.block(at)
	if err != nil {
		return nil, err
	}
	if err := t.v.super.CheckExtentBlock(t.inode, b); err != nil {
		return nil, fmt.Errorf("node at block %d: %w", at, err)
	}
	n := &node{}
	return n, t.read(n, b, at, level, from, to)
}

// leaf returns the leaf that maps, or would map, a block.
func (t *tree) leaf(logical uint32) *node {
	n := t.root
	for n.level > 0 {
		at, found := slices.BinarySearchFunc(n.below, logical, func(c *node, l uint32) int { return cmp.Compare(c.first, l) })
		if !found && at > 0 {
			at--
		}
		n = n.below[at]
	}
	return n
}

// place returns the index of the first run in a leaf that ends behind a block.
func (n *node) place(logical uint32) int {
	at, _ := slices.BinarySearchFunc(n.runs, uint64(logical), func(r ext4.Run, l uint64) int {
		return cmp.Compare(uint64(r.Logical)+uint64(r.Length), l+1)
	})
	return at
}

func (t *tree) at(logical uint32) (ext4.Run, uint64, error) {
	n := t.leaf(logical)
	at := n.place(logical)
	if at < len(n.runs) {
		r := n.runs[at]
		if r.Logical <= logical {
			return r.Skip(logical - r.Logical), uint64(r.Logical) + uint64(r.Length), nil
		}
		return ext4.Run{}, uint64(r.Logical), nil
	}
	return ext4.Run{}, t.after(t.root, logical), nil
}

// after returns the first block behind logical with which a node below n begins; 1<<32 if there is none.
func (t *tree) after(n *node, logical uint32) uint64 {
	end := uint64(1 << 32)
	for n.level > 0 {
		at, found := slices.BinarySearchFunc(n.below, logical, func(c *node, l uint32) int { return cmp.Compare(c.first, l) })
		if found {
			at++
		}
		if at < len(n.below) {
			end = uint64(n.below[at].first)
		}
		n = n.below[max(0, at-1)]
	}
	return end
}

func (t *tree) before(logical uint32) ext4.Run {
	n := t.leaf(logical)
	if at := n.place(logical); at > 0 {
		return n.runs[at-1]
	}
	return ext4.Run{}
}

// limit returns how many blocks extents can map: one less than 2^32 (fs/ext4/super.c,
// ext4_max_size).
func (t *tree) limit() uint64 { return 1<<32 - 1 }

// set maps a run, in one leaf or split over several.
func (t *tree) set(r ext4.Run) error {
	for r.Length > 0 {
		part := r
		if end := t.after(t.root, r.Logical); uint64(r.Logical)+uint64(r.Length) > end {
			part.Length = uint32(end - uint64(r.Logical))
		}
		if err := t.leaf(r.Logical).set(part); err != nil {
			return err
		}
		t.goal = part.Physical + addr.Block(part.Length)
		if part.Length == r.Length {
			return nil
		}
		r = r.Skip(part.Length)
	}
	return nil
}

// set maps a run. Each of its blocks must be a hole so far, or unwritten at the same place on the disk.
func (n *node) set(r ext4.Run) error {
	at := n.place(r.Logical)
	end := uint64(r.Logical) + uint64(r.Length)
	to := at
	var room [3]ext4.Run
	around := room[:0]
	for ; to < len(n.runs) && uint64(n.runs[to].Logical) < end; to++ {
		was := n.runs[to]
		if !was.Unwritten || uint64(was.Physical)-uint64(was.Logical) != uint64(r.Physical)-uint64(r.Logical) {
			return fmt.Errorf("%w: block %d is mapped", errDamaged, was.Logical)
		}
		if was.Logical < r.Logical {
			head := was
			head.Length = r.Logical - was.Logical
			around = append(around, head)
		}
		if tail := uint64(was.Logical) + uint64(was.Length); tail > end {
			around = append(around, r, was.Skip(uint32(end-uint64(was.Logical))))
		}
	}
	if len(around) == 0 || around[len(around)-1].Logical < r.Logical {
		around = append(around, r)
	}
	n.runs = slices.Replace(n.runs, at, to, around...)
	n.join(at)
	n.dirty = true
	return nil
}

// join joins runs that are adjacent both in the file and on the disk, of those with
// indices from at-1 to at+3.
func (n *node) join(at int) {
	for i := max(1, at); i < len(n.runs) && i <= at+3; {
		a, b := &n.runs[i-1], n.runs[i]
		longest := uint64(ext4.MaxRun)
		if a.Unwritten {
			longest--
		}
		if a.Unwritten == b.Unwritten && uint64(a.Logical)+uint64(a.Length) == uint64(b.Logical) &&
			a.Physical+addr.Block(a.Length) == b.Physical && uint64(a.Length)+uint64(b.Length) <= longest {
			a.Length += b.Length
			n.runs = slices.Delete(n.runs, i, i+1)
			continue
		}
		i++
	}
}

// store splits the nodes that have become too large for their blocks, and writes what changed.
func (t *tree) store(root []byte) error {
	room := (int(t.v.super.BlockSize) - ext4.ExtentSize) / ext4.ExtentSize
	if t.root.level > 0 {
		if err := t.split(t.root, room); err != nil {
			return err
		}
	}
	rootRoom := len(root)/ext4.ExtentSize - 1
	for max(len(t.root.runs), len(t.root.below)) > rootRoom {
		if t.root.level == ext4.ExtentMaxDepth {
			return fmt.Errorf("%w: its tree would have more than %d levels", ErrNoSpace, ext4.ExtentMaxDepth)
		}
		old := t.root
		t.root = &node{level: old.level + 1, dirty: true}
		var err error
		if t.root.below, err = t.pieces(old, room); err != nil {
			return err
		}
	}
	if err := t.write(t.root); err != nil {
		return err
	}
	return t.put(root, t.root)
}

// split splits the nodes below n that have more entries than they have room for.
func (t *tree) split(n *node, room int) error {
	if n.level == 0 {
		return nil
	}
	var below []*node
	for _, c := range n.below {
		if err := t.split(c, room); err != nil {
			return err
		}
		was := c.first
		c.first = c.begins()
		n.dirty = n.dirty || c.first != was
		if max(len(c.runs), len(c.below)) <= room {
			below = append(below, c)
			continue
		}
		parts, err := t.pieces(c, room)
		if err != nil {
			return err
		}
		n.dirty = true
		below = append(below, parts...)
	}
	n.below = below
	return nil
}

// begins returns the block of the file that a node begins with.
func (n *node) begins() uint32 {
	switch {
	case n.level > 0:
		return n.below[0].first
	case len(n.runs) > 0:
		return n.runs[0].Logical
	}
	return n.first
}

// pieces distributes the entries of a node over as many nodes as they need. All but the last
// are full, as if the file had been written from its beginning. The first one keeps the node's
// block, if it has one.
func (t *tree) pieces(n *node, room int) ([]*node, error) {
	var out []*node
	for len(n.runs)+len(n.below) > 0 {
		p := &node{level: n.level, block: n.block, dirty: true}
		n.block = 0
		if p.block == 0 {
			at, _, err := t.v.allocate(t.near(), 1)
			if err != nil {
				return nil, err
			}
			p.block = at
		}
		k := min(room, len(n.runs))
		p.runs, n.runs = n.runs[:k:k], n.runs[k:]
		k = min(room, len(n.below))
		p.below, n.below = n.below[:k:k], n.below[k:]
		p.first = p.begins()
		out = append(out, p)
	}
	return out, nil
}

// near returns the best place for a block of the tree: behind the run that was mapped last, or
// else where the file itself would begin.
func (t *tree) near() addr.Block {
	if t.v.super.Contains(t.goal, 1) {
		return t.goal
	}
	return t.v.goal(t.inode, ext4.Run{}, 0)
}

// write writes the nodes below n that have changed.
func (t *tree) write(n *node) error {
	for _, c := range n.below {
		if err := t.write(c); err != nil {
			return err
		}
		if !c.dirty {
			continue
		}
		b := make([]byte, t.v.super.BlockSize)
		if err := t.put(b, c); err != nil {
			return err
		}
		if err := t.v.super.SealExtentBlock(t.inode, b); err != nil {
			return err
		}
		t.v.out[c.block] = b
	}
	return nil
}

// put writes the bytes of a node to b.
func (t *tree) put(b []byte, n *node) error {
	below := make([]ext4.Index, len(n.below))
	for i, c := range n.below {
		below[i] = ext4.Index{Logical: c.first, Node: c.block}
	}
	return ext4.PutExtents(b, n.level, n.runs, below)
}
