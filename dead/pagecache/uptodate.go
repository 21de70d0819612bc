package pagecache

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// memoryTypes are the file systems whose pages are the only copy of their files: what
// is neither in their page cache nor in swap is a hole.
var memoryTypes = map[string]bool{"tmpfs": true, "devtmpfs": true, "ramfs": true, "rootfs": true}

// InMemory reports whether the file system has no disk at all.
func (s *Superblock) InMemory() bool { return memoryTypes[s.Type] }

var errSwapped = errors.New("page was swapped out, and swap is not part of memory")

// Held yields the bytes of a file that memory holds in pages that are filled,
// whether saved or not. Pieces ascend, do not overlap, and end with the page that
// holds the end of the file. What is not taken is a *Refusal, after which the
// walk goes on; a page that was never filled is passed over.
func (c *Cache) Held(s *Superblock, i *Inode) iter.Seq2[Piece, error] { return c.HeldFrom(s, i, 0) }

// HeldFrom is Held for the bytes from an offset on. The first piece may begin before it.
func (c *Cache) HeldFrom(s *Superblock, i *Inode, from int64) iter.Seq2[Piece, error] {
	return func(consume func(Piece, error) bool) {
		yield := ascending(consume)
		first, last := addr.Index(from>>i.unit), i.unit.End(i.Size)
		c.cached(i, last, func(at slotted, err error) bool {
			if at.index+addr.Index(at.pages) <= first {
				return true
			}
			if err != nil {
				left := uint64(last - min(at.index, last))
				return yield(Piece{}, i.refuse(at.index, min(at.pages, left), BadTree, err))
			}
			return c.held(s, i, at, yield)
		})
	}
}

// cached is like marked, but visits every entry before last, marked or not.
func (c *Cache) cached(i *Inode, last addr.Index, visit func(slotted, error) bool) {
	w := &treeWalk{c: c, array: i.tree, last: last, visit: visit}
	switch head := entry(i.head); {
	case head == 0 || last == 0:
	case head.isNode():
		w.every(head.node(), nil, 0, 0)
	default:
		visit(slotted{entry: head, pages: 1}, nil)
	}
}

// All yields all bytes of a file that memory has: those of pages that are filled, and the
// unsaved bytes of other pages. Unsaved bytes that are not taken are a *Refusal, after which
// the walk goes on; other bytes that are not taken are passed over.
func (c *Cache) All(s *Superblock, i *Inode) iter.Seq2[Piece, error] {
	return func(yield func(Piece, error) bool) {
		var pieces []Piece
		for p, err := range c.Held(s, i) {
			if err == nil {
				pieces = append(pieces, p)
			}
		}
		held := len(pieces)
		for p, err := range c.unsaved(s, i) {
			if err != nil {
				if !yield(Piece{}, err) {
					return
				}
				continue
			}
			// Filled pages are held whole.
			n, _ := slices.BinarySearchFunc(pieces[:held], p.Off, func(h Piece, off int64) int { return cmp.Compare(h.End, off+1) })
			if n == held || pieces[n].Off >= p.End {
				pieces = append(pieces, p)
			}
		}
		slices.SortFunc(pieces, func(a, b Piece) int { return cmp.Compare(a.Off, b.Off) })
		for _, p := range pieces {
			if !yield(p, nil) {
				return
			}
		}
	}
}

// every visits the entries below one node, marked or not, and stray siblings, which belong to
// no entry. It ends for the same reasons as treeWalk.node.
func (w *treeWalk) every(at addr.Virt, parent *treeNode, slot int, base addr.Index) bool {
	here, b, err := w.enter(at, parent, slot)
	if err != nil {
		return w.visit(slotted{index: base, pages: parent.slotPages()}, err)
	}
	l := &w.c.layout.node
	var n int // slots that an entry takes
	for slot := 0; slot < l.chunk; slot += n {
		n = l.run(b, slot)
		e := l.entryAt(b, slot)
		if e == 0 && n == 1 {
			continue
		}
		if here.shift+bits.Len(uint(slot)) > 64 {
			return true // beyond the end of any file
		}
		index := base + addr.Index(slot)<<here.shift
		if index >= w.last {
			return true
		}
		if e.isNode() && here.shift > 0 {
			n = 1 // an entry for a node has no siblings
			if !w.every(e.node(), &here, slot, index) {
				return false
			}
			continue
		}
		if !w.visit(w.slotted(b, here, slot, index), nil) {
			return false
		}
	}
	return true
}

// held yields the bytes of one entry of the tree, if its page is filled.
func (c *Cache) held(s *Superblock, i *Inode, at slotted, yield func(Piece, error) bool) bool {
	switch {
	case at.isValue() && i.Flags&FlagDAX != 0:
		return yield(Piece{}, i.refuse(at.index, at.pages, DAX, nil))
	case at.isValue() && s.InMemory():
		return yield(Piece{}, i.refuse(at.index, at.pages, BadSlot, errSwapped))
	case at.isValue():
		return true // the shadow of a page that was evicted, hence saved
	}
	p, err := c.sound(i, at)
	if err != nil {
		return yield(Piece{}, err)
	}
	switch l := &c.layout.page; {
	case p.has(l.uptodate):
	case s.InMemory() && c.unfilled(p) && p.has(l.dirty):
		return yield(Piece{}, i.refuse(at.index, at.pages, NotUptodate, errMigrating))
	default:
		return true
	}
	return p.intact(i, yield)(whole(p, at), nil)
}

// maxLink bounds the target of a symbolic link, in bytes (PATH_MAX).
const maxLink = 4096

// Link returns the target of a symbolic link, if the inode holds it itself.
func (c *Cache) Link(i *Inode) (string, error) {
	l := c.k.Types().Layout("inode")
	link := l.Field("i_link", 8)
	if err := l.Err(); err != nil {
		return "", fmt.Errorf("read link of inode %d: %w", i.Ino, err)
	}
	at, err := c.k.Pointer(link.In(i.Addr))
	if err != nil {
		return "", fmt.Errorf("read link of inode %d: %w", i.Ino, err)
	}
	target, err := c.k.CString(at, maxLink)
	if err != nil || target == "" {
		return "", fmt.Errorf("read link of inode %d: %w", i.Ino, errors.Join(err, kernel.ErrNotFound))
	}
	return target, nil
}
