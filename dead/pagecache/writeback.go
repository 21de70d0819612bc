package pagecache

import (
	"errors"
	"fmt"
	"iter"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// Inodes yields all inodes of a file system that are in memory. A list that does
// not check out ends the walk with an error; an inode that is refused is a
// *Refusal, and the walk goes on.
func (c *Cache) Inodes(s *Superblock) iter.Seq2[*Inode, error] {
	return func(yield func(*Inode, error) bool) {
		head := c.layout.super.inodes.In(s.Addr)
		for at, err := range c.List(head) {
			if err != nil {
				yield(nil, fmt.Errorf("walk inodes of %s: %w", s.ID, err))
				return
			}
			i, err := c.inode(at-addr.Virt(c.layout.inode.sbList.Off), s)
			if errors.Is(err, errNoFile) {
				continue
			}
			if !yield(i, err) {
				return
			}
		}
	}
}

// DirtyOrLocked yields what Dirty does, and every other inode with an operation on it in
// flight. A file that was being truncated still has blocks beyond its end. A journal would
// have the file on its orphan list; without one, e2fsck takes such blocks for a sign that
// the size is wrong (PR_1_BAD_I_SIZE).
func (c *Cache) DirtyOrLocked(s *Superblock) iter.Seq2[*Inode, error] {
	return c.dirtyAnd(s, func(i *Inode, err error) bool { return err == nil && i.Writing }) // what is dirty was looked at
}

// dirtyAnd yields what Dirty does, and every other inode and error of Inodes that are wanted.
func (c *Cache) dirtyAnd(s *Superblock, wanted func(*Inode, error) bool) iter.Seq2[*Inode, error] {
	return func(yield func(*Inode, error) bool) {
		seen := make(map[addr.Virt]struct{})
		for i, err := range c.Dirty(s) {
			if i != nil {
				seen[i.Addr] = struct{}{}
			}
			if !yield(i, err) {
				return
			}
		}
		for i, err := range c.Inodes(s) {
			if i != nil {
				if _, ok := seen[i.Addr]; ok {
					continue
				}
			}
			if wanted(i, err) && !yield(i, err) {
				return
			}
		}
	}
}

// Dirty yields every inode of a file system that is dirty, has pages under
// writeback, or had a write that failed, each once. It walks the lists of the writeback
// machinery, and, if those may be incomplete or a write to the file system has failed, all
// its inodes. Errors are a *Refusal about one inode, after which the walk goes on, or say
// that neither walk could be completed.
func (c *Cache) Dirty(s *Superblock) iter.Seq2[*Inode, error] {
	return func(yield func(*Inode, error) bool) {
		w := &dirtyWalk{c: c, s: s, yield: yield, seen: make(map[addr.Virt]struct{})}
		w.known = c.superAddresses()
		for head, off := range w.heads() {
			if !w.list(head, off) {
				return
			}
		}
		if w.doubt == nil && !s.failed {
			return
		}
		for i, err := range c.Inodes(s) {
			var refusal *Refusal
			switch {
			case err == nil && !i.Failed && (w.doubt == nil || !i.queued && !i.marked):
				continue
			case err == nil:
				if !w.give(i) {
					return
				}
			case errors.As(err, &refusal):
				if !yield(nil, err) {
					return
				}
			default:
				yield(nil, errors.Join(err, w.doubt))
				return
			}
		}
	}
}

// dirtyWalk is the state of one walk of Dirty.
type dirtyWalk struct {
	c     *Cache
	s     *Superblock
	yield func(*Inode, error) bool
	seen  map[addr.Virt]struct{}
	known map[addr.Virt]struct{} // superblocks
	doubt error                  // why the lists may be incomplete; nil if they are not
}

func (w *dirtyWalk) doubtful(err error) { w.doubt = errors.Join(w.doubt, err) }

// give yields an inode, unless it was yielded before.
func (w *dirtyWalk) give(i *Inode) bool {
	if _, dup := w.seen[i.Addr]; dup {
		return true
	}
	w.seen[i.Addr] = struct{}{}
	return w.yield(i, nil)
}

// heads yields the heads of all lists with unsaved inodes on them, and where in an inode
// the entry of the list is.
func (w *dirtyWalk) heads() iter.Seq2[addr.Virt, kernel.Field] {
	return func(yield func(addr.Virt, kernel.Field) bool) {
		l := w.c.layout
		// A sync(2) in flight keeps inodes on a list of its own
		// (fs/fs-writeback.c, wait_sb_inodes).
		if w.s.sync {
			w.doubtful(errors.New("a sync was under way"))
		}
		if !yield(l.super.writeback.In(w.s.Addr), l.inode.wbList) {
			return
		}
		rootSeen := false
		root := l.bdi.root.In(w.s.bdi)
		for at, err := range w.c.List(l.bdi.list.In(w.s.bdi)) {
			if err != nil {
				w.doubtful(err)
				break
			}
			wb := at - addr.Virt(l.bdi.node.Off)
			rootSeen = rootSeen || wb == root
			if !w.listsOf(wb, yield) {
				return
			}
		}
		if !rootSeen {
			w.doubtful(errors.New("the device's own writeback list is missing"))
			w.listsOf(root, yield)
		}
	}
}

// listsOf yields the heads of the lists of one bdi_writeback.
func (w *dirtyWalk) listsOf(wb addr.Virt, yield func(addr.Virt, kernel.Field) bool) bool {
	l := &w.c.layout.bdi
	b, err := w.c.k.Bytes(wb, l.wbSize)
	switch {
	case err != nil:
		w.doubtful(err)
		return true
	case l.backPointer.Pointer(b) != w.s.bdi:
		w.doubtful(fmt.Errorf("writeback state at %v is of another device", wb))
		return true
	case !l.lock.Free(b):
		// The lists were being changed, or the lock does not say. Inodes may be on a list on some stack (queue_io).
		w.doubtful(errors.New("a writeback list was being changed"))
	}
	for _, list := range []kernel.Field{l.dirty, l.io, l.moreIO, l.dirtyTime} {
		if !yield(list.In(wb), w.c.layout.inode.ioList) {
			return false
		}
	}
	return true
}

// list yields the inodes of one list. The lists of a device also hold inodes of
// its other file systems and of the block device itself.
func (w *dirtyWalk) list(head addr.Virt, entry kernel.Field) bool {
	for at, err := range w.c.List(head) {
		if err != nil {
			w.doubtful(err)
			return true
		}
		i, err := w.c.inode(at-addr.Virt(entry.Off), w.s)
		var other otherSuper
		switch {
		case err == nil:
			if !w.give(i) {
				return false
			}
		case errors.Is(err, errNoFile):
		case errors.As(err, &other):
			if _, ok := w.known[other.super]; !ok {
				w.doubtful(fmt.Errorf("list at %v: %w", head, err))
			}
		default:
			if !w.yield(nil, err) {
				return false
			}
		}
	}
	return true
}

// superAddresses returns the addresses of all superblocks.
func (c *Cache) superAddresses() map[addr.Virt]struct{} {
	known := make(map[addr.Virt]struct{})
	for s, err := range c.Superblocks() {
		if err == nil {
			known[s.Addr] = struct{}{}
		}
	}
	return known
}
