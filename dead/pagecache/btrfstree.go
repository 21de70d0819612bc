package pagecache

import (
	"encoding/binary"
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// btrfsBlock is a block of a btrfs tree. The format is that of include/uapi/linux/btrfs_tree.h (struct btrfs_header, btrfs_key_ptr
// and btrfs_item); least significant byte first.
type btrfsBlock struct {
	raw            []byte
	at, generation uint64
	level          int
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
	if t.level > 0 {
		for at := btrfsHeaderSize; len(t.children) < int(count); at += size {
			t.children = append(t.children, btrfsChild{btrfsKeyAt(b[at:]), u64(at + 17), u64(at + 25)})
		}
		return t, nil
	}
	t.inodes = make(map[addr.Ino]btrfsInodeItem)
	for n := range int(count) {
		at := btrfsHeaderSize + n*size
		if b[at+8] != btrfsInodeItemKey {
			continue
		}
		off, length := uint64(binary.LittleEndian.Uint32(b[at+17:])), binary.LittleEndian.Uint32(b[at+21:])
		if length != btrfsInodeItemSize || off+btrfsInodeItemSize > uint64(len(b)-btrfsHeaderSize) {
			return nil, fmt.Errorf("%w: item %d has %d bytes at %d", errBtrfsBlock, n, length, off)
		}
		t.inodes[addr.Ino(u64(at))] = btrfsInodeItem(b[btrfsHeaderSize+off:])
	}
	return t, nil
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
	if err == nil && (child.level != t.level-1 || child.generation != c.generation) {
		err = fmt.Errorf("%w: the one at %d is of generation %d and level %d, below one of level %d that has it with generation %d",
			errBtrfsBlock, c.at, child.generation, child.level, t.level, c.generation)
	}
	return child, err
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
