package pagecache

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// btrfsBlock is a block of a btrfs tree. The format is that of include/uapi/linux/btrfs_tree.h (struct btrfs_header, btrfs_key_ptr
// and btrfs_item); least significant byte first.
type btrfsBlock struct {
	raw            []byte
	at, generation uint64
	level          int
	first          btrfsKey                    // of its items, or of the blocks below it; zero without any
	locked         bool                        // somebody was about to change it, or had changed it
	children       []btrfsChild                // of a block that is not a leaf
	inodes         map[addr.Ino]btrfsInodeItem // of a leaf
}

// btrfsChild is a block below another one. Its first item has the key, or a higher one.
type btrfsChild struct {
	key            btrfsKey
	at, generation uint64
}

// btrfsKey is a struct btrfs_disk_key.
type btrfsKey struct {
	ino  addr.Ino
	kind byte
	off  uint64
}

func (k btrfsKey) compare(other btrfsKey) int {
	return cmp.Or(cmp.Compare(k.ino, other.ino), cmp.Compare(k.kind, other.kind), cmp.Compare(k.off, other.off))
}

func btrfsKeyAt(b []byte) btrfsKey {
	return btrfsKey{addr.Ino(binary.LittleEndian.Uint64(b)), b[8], binary.LittleEndian.Uint64(b[9:])}
}

// Sizes and values of the format, in bytes.
const (
	btrfsHeaderSize    = 101
	btrfsItemSize      = 25
	btrfsChildSize     = 33
	btrfsInodeItemSize = 160
	btrfsMaxLevel      = 8 // BTRFS_MAX_LEVEL (fs/btrfs/ctree.h)
	btrfsInodeItemKey  = 1 // BTRFS_INODE_ITEM_KEY
)

// btrfsInodeItem is a struct btrfs_inode_item.
type btrfsInodeItem [btrfsInodeItemSize]byte

// anyInodeItem is of an inode of which only the number is known.
var anyInodeItem = btrfsInodeItem{40: 1}

// links is how many names the inode has.
func (i *btrfsInodeItem) links() uint32 { return binary.LittleEndian.Uint32(i[40:]) }

// trans is the transaction that last changed the inode.
func (i *btrfsInodeItem) trans() uint64 { return binary.LittleEndian.Uint64(i[8:]) }

// same reports whether two items differ in nothing but their transaction.
func (i btrfsInodeItem) same(other btrfsInodeItem) bool {
	copy(other[8:16], i[8:16])
	return i == other
}

var errBtrfsBlock = errors.New("damaged tree block")

func parseBtrfsBlock(b []byte) (*btrfsBlock, error) {
	if len(b) < btrfsHeaderSize {
		return nil, fmt.Errorf("%w: %d bytes", errBtrfsBlock, len(b))
	}
	u64 := func(off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
	t := &btrfsBlock{raw: b, at: u64(48), generation: u64(80), level: int(b[100])}
	size := btrfsItemSize
	if t.level > 0 {
		size = btrfsChildSize
	}
	count := uint64(binary.LittleEndian.Uint32(b[96:]))
	if t.level >= btrfsMaxLevel || count > uint64((len(b)-btrfsHeaderSize)/size) {
		return nil, fmt.Errorf("%w: %d items at level %d", errBtrfsBlock, count, t.level)
	}
	if count > 0 {
		t.first = btrfsKeyAt(b[btrfsHeaderSize:])
	}
	if t.level > 0 {
		for at := btrfsHeaderSize; len(t.children) < int(count); at += size {
			t.children = append(t.children, btrfsChild{btrfsKeyAt(b[at:]), u64(at + 17), u64(at + 25)})
		}
		return t, nil
	}
	t.inodes = make(map[addr.Ino]btrfsInodeItem)
	for item, err := range btrfsItems(b, btrfsInodeItemKey) {
		if err == nil && len(item.data) != btrfsInodeItemSize {
			err = fmt.Errorf("%w: an inode item of %d bytes", errBtrfsBlock, len(item.data))
		}
		if err != nil {
			return nil, err
		}
		t.inodes[item.key.ino] = btrfsInodeItem(item.data)
	}
	return t, nil
}

// btrfsItem is an item of a leaf.
type btrfsItem struct {
	key  btrfsKey
	at   int // of its data, in the block
	data []byte
}

// btrfsItems yields the items of one kind in a leaf whose header was checked.
func btrfsItems(leaf []byte, kind byte) iter.Seq2[btrfsItem, error] {
	return func(yield func(btrfsItem, error) bool) {
		for n := range int(binary.LittleEndian.Uint32(leaf[96:])) {
			b := leaf[btrfsHeaderSize+n*btrfsItemSize:]
			i := btrfsItem{key: btrfsKeyAt(b)}
			if i.key.kind != kind {
				continue
			}
			off, size := uint64(binary.LittleEndian.Uint32(b[17:])), uint64(binary.LittleEndian.Uint32(b[21:]))
			if off+size > uint64(len(leaf)-btrfsHeaderSize) {
				yield(i, fmt.Errorf("%w: item %d has %d bytes at %d", errBtrfsBlock, n, size, off))
				return
			}
			i.at = btrfsHeaderSize + int(off)
			if i.data = leaf[i.at:][:size]; !yield(i, nil) {
				return
			}
		}
	}
}

// btrfsBlocks are the tree blocks that the kernel has in memory, each to be read once.
type btrfsBlocks struct {
	f       *Btrfs
	cache   *Device
	visited map[uint64]struct{}
}

// btrfsWalk collects the inode items of one tree that are younger than the last commit.
type btrfsWalk struct {
	*btrfsBlocks
	items   map[addr.Ino]btrfsInodeItem
	missing int // blocks that are not in memory
}

// top walks the tree whose root block is at an address of the file system's own (logical) addresses, in bytes. What it finds
// damaged, or not in memory, is an error, and it goes on without.
func (w *btrfsWalk) top(at uint64) error {
	t, err := w.read(at)
	if err == nil {
		err = w.below(t)
	} else if errors.Is(err, ErrNotCached) {
		w.missing, err = 1, nil
	}
	if w.missing > 0 {
		err = errors.Join(fmt.Errorf("%d blocks of its tree, which the kernel had written and dropped, are not in memory: "+
			"if it had dropped changed files that they have, too, these are not refused by number", w.missing), err)
	}
	return err
}

// below walks from a block on down. It ends, because levels only get smaller and no block is visited twice.
func (w *btrfsWalk) below(t *btrfsBlock) error {
	var errs []error
	for ino, item := range t.inodes {
		if item.trans() > w.f.LastCommitted {
			w.items[ino] = item
		}
	}
	for _, c := range t.children {
		if c.generation <= w.f.LastCommitted {
			continue
		}
		child, err := w.child(t, c)
		if err == nil {
			err = w.below(child)
		}
		if errors.Is(err, ErrNotCached) {
			w.missing++
			continue
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// child reads a block below another one.
func (w *btrfsBlocks) child(t *btrfsBlock, c btrfsChild) (*btrfsBlock, error) {
	child, err := w.read(c.at)
	if err == nil {
		err = t.isAbove(c, child)
	}
	return child, err
}

// isAbove checks that a block has another one for its child.
func (t *btrfsBlock) isAbove(c btrfsChild, child *btrfsBlock) error {
	if t.locked && child.first != c.key {
		return fmt.Errorf("%w: the one at %d does not begin as the one above it says, which was locked when the kernel died", errBtrfsBlock, c.at)
	}
	if child.level == t.level-1 && child.generation == c.generation {
		return nil
	}
	return fmt.Errorf("%w: the one at %d is of generation %d and level %d, below one of level %d that has it with generation %d",
		errBtrfsBlock, c.at, child.generation, child.level, t.level, c.generation)
}

// read reads a block from memory.
func (w *btrfsBlocks) read(at uint64) (*btrfsBlock, error) {
	if _, again := w.visited[at]; again || at > 1<<62 {
		return nil, fmt.Errorf("%w: the one at %d is in the tree twice, or not on any disk", errBtrfsBlock, at)
	}
	w.visited[at] = struct{}{}
	part := min(w.f.nodeSize, int(w.f.c.k.Pages().Size()))
	b := make([]byte, 0, w.f.nodeSize)
	for len(b) < w.f.nodeSize {
		p, within, err := w.cache.pageOf(int64(at)+int64(len(b)), part)
		if err != nil {
			return nil, fmt.Errorf("tree block at %d: %w", at, err)
		}
		bytes, err := w.f.c.k.Memory().View(p.phys()+addr.Phys(within), part)
		if err != nil {
			return nil, fmt.Errorf("tree block at %d: %w", at, err)
		}
		b = append(b, bytes...)
	}
	t, err := parseBtrfsBlock(b)
	if err != nil {
		return nil, fmt.Errorf("tree block at %d: %w", at, err)
	}
	if t.at != at {
		return nil, fmt.Errorf("%w: the one at %d says that it is at %d", errBtrfsBlock, at, t.at)
	}
	return t, nil
}

// settled reports whether the pointers in a block above the leaves are all there, although it was locked: most of those who lock one only
// pass through it. One of them is twice in it while others are moved to make room, or close up; the last is behind the end while one is
// added, or while some are moved to another block (fs/btrfs/ctree.c, insert_ptr, del_ptr, push_node_left, split_node). What a
// change some time ago has left there counts, too. Both key and generation of a block below must be as the pointer says (isAbove).
func (t *btrfsBlock) settled() bool {
	if t.level == 0 || len(t.children) == 0 {
		return false
	}
	for n, c := range t.children[1:] {
		if before := t.children[n]; before.key.compare(c.key) >= 0 || before.at == c.at {
			return false
		}
	}
	end := btrfsHeaderSize + len(t.children)*btrfsChildSize
	if end+btrfsChildSize > len(t.raw) {
		return true // it is full
	}
	behind := t.raw[end:]
	last := t.children[len(t.children)-1]
	return binary.LittleEndian.Uint64(behind[17:]) == 0 || btrfsKeyAt(behind).compare(last.key) <= 0
}

// still checks that a block had been read, and that nobody was changing it: whoever does holds the lock of its extent buffer
// (fs/btrfs/locking.c). If a block is not smaller than a page, each of its pages has the extent buffer as its private data
// (extent_io.c, attach_extent_buffer_page).
func (w *btrfsBlocks) still(t *btrfsBlock) error {
	p, _, err := w.cache.pageOf(int64(t.at), min(w.f.nodeSize, int(w.f.c.k.Pages().Size())))
	if err != nil {
		return err
	}
	trees := w.f.layout.trees
	if !trees.blockFlags.Present() {
		return fmt.Errorf("whether a tree block is uptodate: %w", kernel.ErrNotFound)
	}
	at, err := w.f.c.k.U64(trees.start.In(p.private))
	if err == nil && (at != t.at || !p.has(w.f.c.layout.page.hasPrivate)) {
		err = errors.New("its page has no extent buffer")
	}
	var flags uint64
	if err == nil {
		flags, err = w.f.c.k.U64(trees.blockFlags.In(p.private))
	}
	if err == nil && flags>>trees.uptodate&1 == 0 {
		err = errors.New("it was not uptodate when the kernel died")
	}
	if err == nil {
		var free bool
		free, err = w.f.c.k.Free(trees.blockLock, p.private)
		if t.locked = !free; err == nil && t.locked && !t.settled() {
			err = errors.New("it was being changed when the kernel died")
		}
	}
	if err != nil {
		return fmt.Errorf("tree block at %d: %w", t.at, err)
	}
	return nil
}
