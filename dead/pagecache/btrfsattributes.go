package pagecache

import (
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/addr"
)

// btrfsAttributeKey is the kind of the items that have an inode's extended attributes (BTRFS_XATTR_ITEM_KEY).
const btrfsAttributeKey = 24

// BtrfsAttributes are the extended attributes in the trees of a btrfs, as memory has them. Each block is read once. It is not safe
// for concurrent use.
type BtrfsAttributes struct {
	err    error // nothing can be read
	f      *Btrfs
	blocks *btrfsBlocks
	read   map[uint64]*attributeBlock // by address
}

// attributeBlock is what is kept of a block: the blocks below it, or the attributes in it.
type attributeBlock struct {
	*btrfsBlock
	attrs map[addr.Ino][]Attribute
	err   error
}

// Attributes returns a reader of extended attributes.
func (f *Btrfs) Attributes() *BtrfsAttributes {
	a := &BtrfsAttributes{f: f, err: f.layout.trees.err, read: make(map[uint64]*attributeBlock)}
	if a.err == nil {
		a.blocks, a.err = f.blocks()
	}
	return a
}

// Of returns the extended attributes of an inode, in no particular order. With kept, it returns none: they have not been changed
// since the last commit. The error is an ErrAttributes if memory does not have them all.
func (a *BtrfsAttributes) Of(i *Inode) (out []Attribute, kept bool, err error) {
	out, kept, err = a.of(i)
	if err != nil {
		return nil, false, fmt.Errorf("attributes of inode %d: %w: %w", i.Ino, ErrAttributes, err)
	}
	return out, kept, nil
}

func (a *BtrfsAttributes) of(i *Inode) (out []Attribute, kept bool, err error) {
	if a.err != nil {
		return nil, false, a.err
	}
	b, err := a.f.own(i)
	if err != nil {
		return nil, false, err
	}
	at, err := a.f.treeOf(b)
	if err != nil {
		return nil, false, err
	}
	top, err := a.block(at, func() (*btrfsBlock, error) { return a.blocks.read(at) })
	if err != nil || top.generation <= a.f.LastCommitted {
		return nil, err == nil, err
	}
	w := attributeWalk{a: a, ino: i.Ino}
	if err = w.below(top); err == nil && w.committed && w.changed {
		w = attributeWalk{a: a, ino: i.Ino, all: true}
		err = w.below(top)
	}
	return w.out, w.committed && err == nil, err
}

// block returns a block, which is read if it is the first time.
func (a *BtrfsAttributes) block(at uint64, read func() (*btrfsBlock, error)) (*attributeBlock, error) {
	if b, again := a.read[at]; again {
		return b, b.err
	}
	b := &attributeBlock{}
	a.read[at] = b
	if b.btrfsBlock, b.err = read(); b.err == nil {
		b.err = a.blocks.still(b.btrfsBlock)
	}
	if b.err == nil && b.level == 0 {
		b.attrs, b.err = attributesIn(b.raw)
		b.raw = nil
	}
	return b, b.err
}

// attributesIn returns the attributes in a leaf.
func attributesIn(leaf []byte) (map[addr.Ino][]Attribute, error) {
	out := make(map[addr.Ino][]Attribute)
	for item, err := range btrfsItems(leaf, btrfsAttributeKey) {
		var some []Attribute
		if err == nil {
			some, err = parseBtrfsAttributes(slices.Clone(item.data))
		}
		if err != nil {
			return nil, err
		}
		out[item.key.ino] = append(out[item.key.ino], some...)
	}
	return out, nil
}

// attributeWalk collects the attributes of one inode, of those blocks that are younger than the last commit, or of all.
type attributeWalk struct {
	a         *BtrfsAttributes
	ino       addr.Ino
	all       bool
	out       []Attribute
	changed   bool // a leaf is younger
	committed bool // a block was left out
}

// below collects what a block, and those below it, have.
func (w *attributeWalk) below(b *attributeBlock) error {
	if b.level == 0 {
		w.out, w.changed = append(w.out, b.attrs[w.ino]...), true
		return nil
	}
	for _, c := range b.mayHave(btrfsKey{w.ino, btrfsAttributeKey, 0}, btrfsKey{w.ino, btrfsAttributeKey + 1, 0}) {
		if !w.all && c.generation <= w.a.f.LastCommitted {
			w.committed = true
			continue
		}
		child, err := w.a.block(c.at, func() (*btrfsBlock, error) { return w.a.blocks.child(b.btrfsBlock, c) })
		if err == nil {
			err = w.below(child)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mayHave returns the blocks below one that may have keys from one on and before another.
func (t *btrfsBlock) mayHave(from, to btrfsKey) []btrfsChild {
	at := func(k btrfsKey) int {
		n, _ := slices.BinarySearchFunc(t.children, k, func(c btrfsChild, k btrfsKey) int { return c.key.compare(k) })
		return n
	}
	first, end := at(from), at(to)
	if first == len(t.children) || t.children[first].key != from {
		first = max(0, first-1) // the one before begins with a lower key
	}
	return t.children[first:max(first, end)]
}
