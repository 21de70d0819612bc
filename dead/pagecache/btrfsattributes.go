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

// Of returns the extended attributes of an inode, in no particular order. The error is an ErrAttributes if memory does not have them
// all.
func (a *BtrfsAttributes) Of(i *Inode) ([]Attribute, error) {
	out, err := a.of(i)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAttributes, err)
	}
	return out, nil
}

func (a *BtrfsAttributes) of(i *Inode) ([]Attribute, error) {
	if a.err != nil {
		return nil, a.err
	}
	b, err := a.f.own(i)
	if err != nil {
		return nil, err
	}
	at, err := a.f.treeOf(b)
	if err != nil {
		return nil, err
	}
	top, err := a.block(at, func() (*btrfsBlock, error) { return a.blocks.read(at) })
	if err != nil {
		return nil, err
	}
	w := attributeWalk{a: a, ino: i.Ino, left: maxAttributeBlocks}
	err = w.below(top)
	return w.out, err
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
		b.raw, b.inodes = nil, nil
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

// maxAttributeBlocks bounds the blocks that are looked into for the attributes of one inode.
const maxAttributeBlocks = 1 << 14

// attributeWalk collects the attributes of one inode.
type attributeWalk struct {
	a    *BtrfsAttributes
	ino  addr.Ino
	left int // blocks that may still come
	out  []Attribute
}

// below collects what a block, and those below it, have. It ends, because levels only get smaller.
func (w *attributeWalk) below(b *attributeBlock) error {
	if w.left--; w.left < 0 {
		return fmt.Errorf("%w: more than %d blocks", errBtrfsBlock, maxAttributeBlocks)
	}
	if b.level == 0 {
		w.out = append(w.out, b.attrs[w.ino]...)
		return nil
	}
	for _, c := range b.mayHave(btrfsKey{w.ino, btrfsAttributeKey, 0}, btrfsKey{w.ino, btrfsAttributeKey + 1, 0}) {
		child, err := w.a.block(c.at, func() (*btrfsBlock, error) { return w.a.blocks.child(b.btrfsBlock, c) })
		if err == nil {
			err = b.isAbove(c, child.btrfsBlock) // it may have been read as another's child
		}
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
