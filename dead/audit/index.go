package audit

import (
	"encoding/binary"
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// The index of a directory by hashes of names (fs/ext4/namei.c, struct dx_root,
// dx_node, dx_entry, dx_tail).
const (
	indexInfo     = 24 // offset of dx_root_info in the root, behind "." and ".."
	indexInfoSize = 8
	indexNode     = 8 // offset of the entries of a node, behind a fake directory entry
	indexEntry    = 8
	indexTail     = 8
	indexLevels   = 2 // without large_dir: the root and one level of nodes
)

// span is the range of hashes of the names in a leaf, from the first to the last.
// sharedFrom and sharedLast say that names with the first, or with the last, hash may
// be in the neighbouring leaf, too.
type span struct {
	from, to               uint32
	sharedFrom, sharedLast bool
}

// within reports whether o has all hashes of s, and shares the same ends.
func (s span) within(o span) bool {
	return s.from >= o.from && s.to <= o.to && s.sharedFrom == o.sharedFrom && s.sharedLast == o.sharedLast
}

// index is the index of a directory.
type index struct {
	kind   byte // of hash
	leaves map[int]span
	nodes  map[int]struct{}
}

// readIndex reads the index of a directory in the new state. Each block of the
// directory must be in it once.
func (c *checker) readIndex(d *directory) error {
	x, err := c.new.index(d.new, d.after)
	if err != nil {
		return err
	}
	if len(x.leaves)+len(x.nodes)+1 != len(d.after) {
		return fmt.Errorf("%d leaves and %d nodes in a directory of %d blocks", len(x.leaves), len(x.nodes), len(d.after))
	}
	d.index, d.nodes, d.hash = x.leaves, x.nodes, x.kind
	return nil
}

// index reads the index of a directory in one view.
func (v *view) index(s *state, blocks []addr.Block) (*index, error) {
	if len(blocks) == 0 {
		return nil, errors.New("the directory is empty")
	}
	b, err := v.block(blocks[0])
	if err != nil {
		return nil, err
	}
	x := &index{kind: b[indexInfo+4], leaves: make(map[int]span), nodes: make(map[int]struct{})}
	levels := int(b[indexInfo+6])
	if binary.LittleEndian.Uint16(b[4:]) != 12 || binary.LittleEndian.Uint16(b[16:]) != uint16(len(b)-12) {
		return nil, errors.New(`its root does not begin with "." and ".."`)
	}
	if binary.LittleEndian.Uint32(b[indexInfo:]) != 0 || b[indexInfo+5] != indexInfoSize || x.kind >= hashKinds || levels >= indexLevels || b[indexInfo+7]&1 != 0 {
		return nil, fmt.Errorf("its root has dx_root_info % x", b[indexInfo:][:indexInfoSize])
	}
	r := &indexReader{v: v, inode: s.Inode, blocks: blocks, out: x}
	return x, r.node(b, indexInfo+indexInfoSize, levels, span{to: 0xfffffffe})
}

// indexReader walks an index.
type indexReader struct {
	v      *view
	inode  *ext4.Inode
	blocks []addr.Block
	out    *index
}

// node walks the entries of a node that has the hashes in a span. The first entry
// has a limit and a count instead of a hash.
func (r *indexReader) node(b []byte, at, level int, all span) error {
	limit, count := int(binary.LittleEndian.Uint16(b[at:])), int(binary.LittleEndian.Uint16(b[at+2:]))
	room := (len(b) - at) / indexEntry
	if r.v.super.Checksummed() {
		room = (len(b) - at - indexTail) / indexEntry
	}
	if limit != room || count == 0 || count > limit {
		return fmt.Errorf("%d entries in a node with room for %d instead of %d", count, limit, room)
	}
	if err := r.checksum(b, at, limit, count); err != nil {
		return err
	}
	rest := all
	for n := range count {
		e := b[at+n*indexEntry:]
		part := rest
		if n+1 < count {
			next := binary.LittleEndian.Uint32(e[indexEntry:])
			part.to, part.sharedLast = next&^1, next&1 != 0
			if !part.sharedLast {
				part.to -= 2 // hashes are even
			}
			if next&^1 < rest.from || next&^1 == rest.from && !part.sharedLast || next&^1 > all.to {
				return fmt.Errorf("hash %#x follows %#x", next, rest.from)
			}
			rest.from, rest.sharedFrom = next&^1, part.sharedLast
		}
		if err := r.child(int(binary.LittleEndian.Uint32(e[4:])&0x0fffffff), level, part); err != nil {
			return err
		}
	}
	return nil
}

// child takes block n of the directory, which an entry points to.
func (r *indexReader) child(n, level int, part span) error {
	_, leaf := r.out.leaves[n]
	_, node := r.out.nodes[n]
	if n == 0 || n >= len(r.blocks) || leaf || node {
		return fmt.Errorf("it points to block %d of a directory of %d blocks, or points to that twice", n, len(r.blocks))
	}
	if level == 0 {
		r.out.leaves[n] = part
		return nil
	}
	r.out.nodes[n] = struct{}{}
	b, err := r.v.block(r.blocks[n])
	if err != nil {
		return err
	}
	if binary.LittleEndian.Uint64(b) != uint64(len(b))<<32 {
		return fmt.Errorf("block %d is not a dx_node", n)
	}
	if err := r.node(b, indexNode, level-1, part); err != nil {
		return fmt.Errorf("block %d: %w", n, err)
	}
	return nil
}

// checksum verifies the checksum of a node, which lies behind the room for entries
// (ext4_dx_csum).
func (r *indexReader) checksum(b []byte, at, limit, count int) error {
	if !r.v.super.Checksummed() {
		return nil
	}
	tail := b[at+limit*indexEntry:][:indexTail]
	sum := ext4.CRC32C(r.inode.Seed, b[:at+count*indexEntry])
	sum = ext4.CRC32C(ext4.CRC32C(sum, tail[:4]), []byte{0, 0, 0, 0})
	if want := binary.LittleEndian.Uint32(tail[4:]); want != sum {
		return fmt.Errorf("%w: %#x instead of %#x", ext4.ErrChecksum, want, sum)
	}
	return nil
}

// checkHashes checks that each name is in the leaf that the index has for its hash,
// and only once. A leaf that did not change is not checked again if its new span has
// all hashes of the old one.
func (c *checker) checkHashes(d *directory) error {
	if d.index == nil {
		return nil
	}
	var was map[int]span
	if d.old.live() && d.old.Flags&ext4.InodeIndex != 0 && d.same() {
		x, err := c.old.index(d.old, d.before)
		if err != nil {
			return asItWas(err)
		}
		if was = x.leaves; x.kind != d.hash {
			was = nil
		}
	}
	for _, n := range sorted(d.index) {
		list, ok := d.leaves[n]
		if !ok {
			if before, there := was[n]; there && before.within(d.index[n]) {
				continue
			}
			var err error
			if list, err = c.readBlock(d, n); err != nil {
				return fmt.Errorf("block %d: %w", n, err)
			}
		}
		if err := c.checkLeaf(d, d.index[n], list); err != nil {
			return fmt.Errorf("block %d: %w", n, err)
		}
	}
	return nil
}

// checkLeaf judges the names of a leaf.
func (c *checker) checkLeaf(d *directory, s span, list []entry) error {
	names := make(map[string]struct{}, len(list))
	for _, e := range list {
		h := nameHash(&c.new.super, d.hash, e.name)
		switch {
		case h < s.from || h > s.to:
			return fmt.Errorf("name %q has hash %#x, but its leaf is for %#x to %#x", e.name, h, s.from, s.to)
		case s.sharedFrom && h == s.from || s.sharedLast && h == s.to:
			return foreignf("names with hash %#x are in two leaves: not understood", h)
		}
		if _, there := names[string(e.name)]; there {
			return fmt.Errorf("name %q is there twice", e.name)
		}
		names[string(e.name)] = struct{}{}
	}
	return nil
}
