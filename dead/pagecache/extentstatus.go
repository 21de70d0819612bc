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

var errStatus = errors.New("tree of extent status does not check out")

type statusLayout struct {
	before                   addr.Virt // as in infoOffsets
	root                     kernel.Field
	lock                     kernel.Lock
	nodes                    rbLayout
	first, count, blockState kernel.Field
}

func newStatusLayout(k *kernel.Kernel) (*statusLayout, error) {
	i, e := layoutIn(k, "ext4_inode_info", "ext4"), layoutIn(k, "extent_status", "ext4")
	l := &statusLayout{before: addr.Virt(i.Field("vfs_inode").Off), root: i.Field("i_es_tree.root.rb_node", 8), nodes: newRBLayout(e, "rb_node")}
	l.lock = i.Lock("i_es_lock")
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
	var out []addr.Span
	next := uint64(0) // the lowest block that may come next
	for b, err := range c.inOrder(root, l.nodes) {
		if err != nil {
			return nil, err
		}
		first, count, state := l.first.Uint(b), l.count.Uint(b), l.blockState.Uint(b)
		if count == 0 || first < next {
			return nil, fmt.Errorf("%w: %d blocks at %d", errStatus, count, first)
		}
		next = first + count
		if state&(statusUnwritten|statusHole) != 0 {
			out = append(out, addr.Span{Off: int64(first) * int64(s.BlockSize), End: int64(next) * int64(s.BlockSize)})
		}
	}
	return out, nil
}
