// Package pagecache walks the file systems, inodes and unsaved pages in the
// memory of a Linux kernel, and gives a reason for everything it does not hand out.
//
// # Caveats
//
// Nothing in memory is trusted: walks are bounded and remember where they have
// been, and back pointers are checked. Walks of the memory of a running kernel give
// answers, but not consistent ones. Buffer heads are understood for ext2, ext3 and
// ext4 only.
package pagecache

import (
	"errors"
	"fmt"
	"iter"
	"sync"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// Cache reads the page cache of one kernel. It is safe for concurrent use.
type Cache struct {
	k      *kernel.Kernel
	layout *layout
	// These are looked up when they are first needed.
	blocks  func() blocksLayout
	info    func() infoOffsets
	maps    func() (*mapLayout, error)
	status  func() (*statusLayout, error)
	heads   func() (*headLayout, error)
	nfs     func() (*nfsLayout, error)
	shares  func() (*shareLayout, error)
	streams func() (*streamLayout, error)
}

// Open looks up everything about the kernel's structures once.
func Open(k *kernel.Kernel) (*Cache, error) {
	l, err := newLayout(k)
	if err != nil {
		return nil, fmt.Errorf("open page cache of %s: %w", k.Release, err)
	}
	blocks := sync.OnceValue(func() blocksLayout { return newBlocksLayout(k) })
	info := sync.OnceValue(func() infoOffsets { return newInfoOffsets(k) })
	status := sync.OnceValues(func() (*statusLayout, error) { return newStatusLayout(k) })
	c := &Cache{k: k, layout: l, blocks: blocks, info: info, status: status}
	c.maps = sync.OnceValues(func() (*mapLayout, error) { return newMapLayout(k) })
	c.heads = sync.OnceValues(c.newHeadLayout)
	c.nfs = sync.OnceValues(func() (*nfsLayout, error) { return newNFSLayout(k) })
	c.shares = sync.OnceValues(func() (*shareLayout, error) { return newShareLayout(k) })
	c.streams = sync.OnceValues(func() (*streamLayout, error) { return newStreamLayout(k) })
	return c, nil
}

// Kernel returns the kernel whose page cache this is.
func (c *Cache) Kernel() *kernel.Kernel { return c.k }

// ErrList is wrapped by the error of a list that does not check out: it may be
// damaged, or was being changed when the kernel died.
var ErrList = errors.New("list does not check out")

// maxList bounds every list. An inode with its slab's share takes 600 bytes and
// more, so this is beyond what 16 GiB full of inodes hold.
const maxList = 1 << 25

// List yields the addresses of the entries of a doubly linked list (struct
// list_head, include/linux/types.h), without the head. Each entry must point
// back to the one before it. That also rules out any cycle but the one through
// the head, because an entry has only one entry before it.
func (c *Cache) List(head addr.Virt) iter.Seq2[addr.Virt, error] { return c.entries(head, head) }

// hlist yields the addresses of the entries of a list with a single pointer as
// its head (struct hlist_head). Each entry points back to the pointer to it, which
// is the first member of the entry before it.
func (c *Cache) hlist(head addr.Virt) iter.Seq2[addr.Virt, error] { return c.entries(head, 0) }

// entries yields the addresses of a list's entries, until a next pointer equals end.
func (c *Cache) entries(head, end addr.Virt) iter.Seq2[addr.Virt, error] {
	return func(yield func(addr.Virt, error) bool) {
		before := head
		at, err := c.k.Pointer(head)
		for n := 0; err == nil && at != end; n++ {
			if n == maxList {
				err = fmt.Errorf("%w: more than %d entries", ErrList, maxList)
				break
			}
			var b []byte
			if b, err = c.k.Bytes(at, 16); err != nil {
				break
			}
			next, back := pointerAt(b, 0), pointerAt(b, 8)
			if back != before {
				err = fmt.Errorf("%w: %v points back to %v, not %v", ErrList, at, back, before)
				break
			}
			if !yield(at, nil) {
				return
			}
			before, at = at, next
		}
		if err != nil {
			yield(0, fmt.Errorf("walk list at %v: %w", head, err))
		}
	}
}

func pointerAt(b []byte, off int) addr.Virt {
	return kernel.Field{Off: off, Size: 8}.Pointer(b)
}
