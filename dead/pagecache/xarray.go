package pagecache

import (
	"errors"
	"fmt"
	"iter"
	"math/bits"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// The xarray (include/linux/xarray.h, lib/xarray.c): a tree of nodes with 64
// slots each, or 16 with CONFIG_BASE_SMALL, and three bits of marks for each slot. In
// a page cache the marks say dirty, writeback and towrite (include/linux/fs.h,
// PAGECACHE_TAG_*), and a slot of an upper node has a mark if anything below it has.
const (
	markCount = 3
	maxShift  = 60 // of the top node: with 64 slots, 11 levels cover 64 bits
)

type nodeLayout struct {
	size                                       int
	chunk                                      int // slots of a node, XA_CHUNK_SIZE
	chunkShift                                 int // log2 of chunk: the bits of an index for one level
	shift, offset, parent, array, slots, marks kernel.Field
}

func (n *nodeLayout) look(t *kernel.Types) error {
	l := t.Layout("xa_node")
	n.size = l.Size
	n.shift = l.Field("shift", 1)
	n.offset = l.Field("offset", 1)
	n.parent = l.Field("parent", 8)
	n.array = l.Field("array", 8)
	n.slots = l.Field("slots", 64*8, 16*8)
	n.chunk = n.slots.Size / 8
	n.chunkShift = bits.TrailingZeros(uint(n.chunk))
	n.marks = l.Field("marks", markCount*8)
	return l.Err()
}

// entry is what a slot of the tree holds.
type entry uint64

func (e entry) isValue() bool    { return e&1 == 1 }
func (e entry) isInternal() bool { return e&3 == 2 }

// isNode reports whether an entry points to a node: it is internal, and beyond the page of error values.
func (e entry) isNode() bool { return e.isInternal() && e > 4096 }

// isSibling reports whether the slot belongs to a multi-index entry in another slot of the
// node, which has chunk slots.
func (e entry) isSibling(chunk int) bool { return e.isInternal() && e < entry(chunk-1)<<2|2 }

func (e entry) sibling() int { return int(e >> 2) }

// entryAt returns the entry in a slot of a node.
func (n *nodeLayout) entryAt(b []byte, slot int) entry {
	return entry(kernel.Field{Off: n.slots.Off + 8*slot, Size: 8}.Uint(b))
}

// run returns how many slots of a node an entry has: its own slot, and those of its siblings behind it.
func (n *nodeLayout) run(b []byte, slot int) int {
	end := slot + 1
	for end < n.chunk && n.entryAt(b, end) == entry(slot)<<2|2 {
		end++
	}
	return end - slot
}

func (e entry) node() addr.Virt { return addr.Virt(e - 2) }

// slotted is an entry and its index.
type slotted struct {
	entry
	index addr.Index
	pages uint64 // how many pages it stands for, of those before the walk's last
}

// treeWalk visits the marked entries of one tree in ascending order.
type treeWalk struct {
	c     *Cache
	array addr.Virt
	last  addr.Index // nothing from here on is of interest
	visit func(slotted, error) bool
}

var errTree = errors.New("inconsistent page cache tree")

// marked visits every marked entry before last. Where the tree is damaged, visit
// gets an error and the range of pages that cannot be visited.
func (c *Cache) marked(i *Inode, last addr.Index, visit func(slotted, error) bool) {
	w := &treeWalk{c: c, array: i.tree, last: last, visit: visit}
	head := entry(i.head)
	switch {
	case head == 0:
	case head.isNode():
		w.node(head.node(), nil, 0, 0)
	default:
		// A file of one page needs no node; its marks are in the flags.
		visit(slotted{entry: head, pages: 1}, nil)
	}
}

// treeNode is a node and its level in the tree, as a shift.
type treeNode struct {
	node  addr.Virt
	shift int
}

// node visits the marked entries below one node, which hangs in a slot of its
// parent; the top node has none. It returns false to stop the walk.
//
// The recursion ends because shifts only get smaller. No node is visited twice,
// because each says which slot of which parent it hangs in.
func (w *treeWalk) node(at addr.Virt, parent *treeNode, slot int, base addr.Index) bool {
	here, b, err := w.enter(at, parent, slot)
	if err != nil {
		return w.visit(slotted{index: base, pages: parent.slotPages()}, err)
	}
	for marks := w.c.layout.node.anyMarks(b); marks != 0; {
		slot := bits.TrailingZeros64(marks)
		marks &^= 1 << slot
		if slot<<here.shift>>here.shift != slot {
			continue // beyond the end of any file
		}
		index := base + addr.Index(slot)<<here.shift
		if index >= w.last {
			return true
		}
		if !w.slot(b, here, slot, index) {
			return false
		}
	}
	return true
}

// slotPages returns how many pages a slot of a node covers; all pages if n is nil.
func (n *treeNode) slotPages() uint64 {
	if n == nil {
		return ^uint64(0)
	}
	return 1 << n.shift
}

// enter reads the node that a slot of its parent points to, and checks it.
func (w *treeWalk) enter(at addr.Virt, parent *treeNode, slot int) (here treeNode, b []byte, err error) {
	l := &w.c.layout.node
	if b, err = w.c.k.Bytes(at, l.size); err != nil {
		return here, nil, err
	}
	here = treeNode{node: at, shift: int(l.shift.Uint(b))}
	return here, b, w.check(b, here, parent, slot)
}

// check compares what a node says of its parent and slot with where it was found.
func (w *treeWalk) check(b []byte, here treeNode, parent *treeNode, slot int) error {
	l := &w.c.layout.node
	switch {
	case l.array.Pointer(b) != w.array:
		return fmt.Errorf("%w: node at %v belongs to another xarray", errTree, here.node)
	case here.shift%l.chunkShift != 0 || here.shift > maxShift:
		return fmt.Errorf("%w: node at %v has a shift of %d", errTree, here.node, here.shift)
	case l.anyMarks(b)>>(l.chunk-1)>>1 != 0:
		return fmt.Errorf("%w: node at %v has marks for slots that do not exist", errTree, here.node)
	case parent == nil:
		// The top node may still point to a parent that is being removed, or
		// already to one that is being added (xas_shrink, xas_expand).
		return nil
	case here.shift != parent.shift-l.chunkShift,
		l.parent.Pointer(b) != parent.node,
		int(l.offset.Uint(b)) != slot:
		return fmt.Errorf("%w: node at %v does not match its parent, offset or shift", errTree, here.node)
	}
	return nil
}

// slot visits what is in one marked slot of a node.
func (w *treeWalk) slot(b []byte, here treeNode, slot int, index addr.Index) bool {
	l := &w.c.layout.node
	e := l.entryAt(b, slot)
	switch first := e.sibling(); {
	case e.isNode() && here.shift > 0:
		return w.node(e.node(), &here, slot, index)
	case e.isSibling(l.chunk) && first < slot && slot < first+l.run(b, first):
		// Marks belong to the first slot of an entry. If that slot is marked,
		// the entry has been visited already.
		if w.isMarked(b, first) {
			return true
		}
		index -= addr.Index(slot-first) << here.shift
		slot = first
	}
	return w.visit(w.slotted(b, here, slot, index), nil)
}

// slotted returns the entry in a slot of a node, with the pages that it and its siblings stand for.
func (w *treeWalk) slotted(b []byte, here treeNode, slot int, index addr.Index) slotted {
	l := &w.c.layout.node
	pages, left := uint64(0), uint64(w.last-index)
	for n := l.run(b, slot); n > 0 && pages < left; n-- {
		pages += here.slotPages()
	}
	return slotted{entry: l.entryAt(b, slot), index: index, pages: min(pages, left)}
}

func (w *treeWalk) isMarked(b []byte, slot int) bool {
	return w.c.layout.node.anyMarks(b)>>slot&1 == 1
}

// anyMarks returns a bit for each slot of a node that has any mark.
func (n *nodeLayout) anyMarks(b []byte) (marks uint64) {
	for m := range markCount {
		marks |= kernel.Field{Off: n.marks.Off + 8*m, Size: 8}.Uint(b)
	}
	return marks
}

// pointers yields the entries of an xarray or a radix tree, which are pointers. An error ends it.
func (c *Cache) pointers(at addr.Virt) iter.Seq2[addr.Virt, error] {
	return func(yield func(addr.Virt, error) bool) {
		l := &c.layout.inode
		head, err := c.k.Pointer(at + addr.Virt(l.head.Off-l.tree.Off))
		if err != nil {
			yield(0, err)
			return
		}
		c.cached(&Inode{tree: at, head: head}, 1<<62, func(at slotted, err error) bool {
			if err == nil && (at.isValue() || at.isInternal() || at.entry == 0) {
				err = fmt.Errorf("%w: slot holds %#x", errTree, uint64(at.entry))
			}
			return yield(addr.Virt(at.entry), err) && err == nil
		})
	}
}
