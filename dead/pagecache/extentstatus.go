package pagecache

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// Bits of es_pblk that say what an extent_status is: two of the five at the top of its
// 64 bits (fs/ext4/extents_status.h, ES_UNWRITTEN_B and ES_HOLE_B).
const (
	statusUnwritten = 1 << 60
	statusHole      = 1 << 62
)

// maxStatuses bounds the nodes in the tree of one file. A red-black tree of that many
// nodes is less than maxStatusDepth deep.
const (
	maxStatuses    = 1 << 20
	maxStatusDepth = 64
)

var errStatus = errors.New("tree of extent status does not check out")

type statusLayout struct {
	before                   addr.Virt // as in infoOffsets
	root                     kernel.Field
	lock                     kernel.Lock
	size                     int // of a node
	left, right              kernel.Field
	first, count, blockState kernel.Field
}

func newStatusLayout(k *kernel.Kernel) (*statusLayout, error) {
	i, e := layoutIn(k, "ext4_inode_info", "ext4"), layoutIn(k, "extent_status", "ext4")
	l := &statusLayout{before: addr.Virt(i.Field("vfs_inode").Off), root: i.Field("i_es_tree.root.rb_node", 8), size: e.Size}
	l.lock = i.Lock("i_es_lock")
	l.left, l.right = e.Field("rb_node.rb_left", 8), e.Field("rb_node.rb_right", 8)
	l.first, l.count, l.blockState = e.Field("es_lblk", 4), e.Field("es_len", 4), e.Field("es_pblk", 8)
	return l, errors.Join(i.Err(), e.Err())
}

// Zeros returns the ranges of an ext4 file that read as zeros unless a page says
// otherwise, ascending: holes and unwritten extents. They come from the file's extent
// status tree (fs/ext4/extents_status.c), which does not change while the extent tree
// itself is mid-update, and which need not cover the whole file.
func (c *Cache) Zeros(s *Superblock, i *Inode) ([]addr.Span, error) {
	zeros, err := c.zeros(s, i)
	if err != nil {
		return nil, fmt.Errorf("extent status of inode %d: %w", i.Ino, err)
	}
	return zeros, nil
}

func (c *Cache) zeros(s *Superblock, i *Inode) ([]addr.Span, error) {
	l, err := c.status()
	if err != nil {
		return nil, err
	}
	free, err := c.k.Free(l.lock, i.Addr-l.before)
	if err != nil {
		return nil, err
	}
	if !free {
		return nil, errors.New("it was being changed when the kernel died, or that cannot be told (i_es_lock)")
	}
	root, err := c.k.Pointer(l.root.In(i.Addr - l.before))
	if err != nil {
		return nil, err
	}
	w := &statusWalk{c: c, l: l, block: int64(s.BlockSize)}
	err = w.below(root, 0)
	return w.out, err
}

// statusWalk goes through an extent status tree in ascending order.
type statusWalk struct {
	c     *Cache
	l     *statusLayout
	block int64  // size, in bytes
	seen  int    // nodes
	next  uint64 // the lowest block that may come next
	out   []addr.Span
}

func (w *statusWalk) below(at addr.Virt, depth int) error {
	if at == 0 {
		return nil
	}
	if w.seen++; w.seen > maxStatuses || depth > maxStatusDepth {
		return errStatus
	}
	b, err := w.c.k.Bytes(at, w.l.size)
	if err != nil {
		return err
	}
	if err := w.below(w.l.left.Pointer(b), depth+1); err != nil {
		return err
	}
	first, count, state := w.l.first.Uint(b), w.l.count.Uint(b), w.l.blockState.Uint(b)
	if count == 0 || first < w.next {
		return fmt.Errorf("%w: %d blocks at %d", errStatus, count, first)
	}
	w.next = first + count
	if state&(statusUnwritten|statusHole) != 0 {
		w.out = append(w.out, addr.Span{Off: int64(first) * w.block, End: int64(w.next) * w.block})
	}
	return w.below(w.l.right.Pointer(b), depth+1)
}
