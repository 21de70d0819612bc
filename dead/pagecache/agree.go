package pagecache

import (
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// unmarked looks for contradictions between the marks of a file's tree and its pages: a page
// that is dirty or under writeback but not marked, in a node with marks; a node with marks in a
// slot without one, or the reverse; and an empty tree of a file with pages. A tree may have nodes
// though the file has no pages: nrpages does not count the shadows of pages that were evicted.
// Nothing else finds an unsaved page without a mark, so such a file must not count as whole. The
// kernel changes the flag of a page and the marks one after the other (mm/page-writeback.c,
// __folio_mark_dirty): a file that was between the two is found, too.
func (c *Cache) unmarked(i *Inode, last addr.Index) error {
	head := entry(i.head)
	if empty := head == 0 || head.isValue() && i.Flags&FlagDAX == 0; empty && i.pages > 0 {
		return fmt.Errorf("%w: nrpages is %d, but xa_head %#x", errTree, i.pages, uint64(head))
	}
	if !head.isNode() {
		return nil // its marks are in the flags, and its page is looked at
	}
	u := &unmarkedWalk{i: i}
	u.treeWalk = treeWalk{c: c, array: i.tree, last: last}
	b, err := c.k.Bytes(head.node(), c.layout.node.size)
	if err != nil {
		return err
	}
	return u.node(b, head.node(), nil, 0, 0)
}

type unmarkedWalk struct {
	treeWalk
	i *Inode
}

// node checks one node, whose bytes are b.
func (u *unmarkedWalk) node(b []byte, at addr.Virt, parent *treeNode, slot int, base addr.Index) error {
	l := &u.c.layout.node
	here := treeNode{node: at, shift: int(l.shift.Uint(b))}
	if err := u.check(b, here, parent, slot); err != nil {
		return err
	}
	for slot := range l.chunk {
		index := base + addr.Index(slot)<<here.shift
		if slot<<here.shift>>here.shift != slot || index >= u.last {
			return nil
		}
		e := l.entryAt(b, slot)
		switch marked := u.isMarked(b, slot); {
		case e.isNode() && here.shift > 0:
			below, err := u.c.k.Bytes(e.node(), l.size)
			if err != nil {
				return err
			}
			if has := l.anyMarks(below) != 0; has != marked {
				return fmt.Errorf("%w: node at %v: the mark of slot %d is %v, but of the node below it %v", errTree, at, slot, marked, has)
			} else if !has {
				continue
			}
			if err := u.node(below, e.node(), &here, slot, index); err != nil {
				return err
			}
		case marked, e == 0, e.isValue(), e.isInternal():
		default:
			p, err := u.c.page(addr.Virt(e))
			if err != nil {
				return err
			}
			if p.mapping == u.i.mapping && (p.has(u.c.layout.page.dirty) || p.writing) {
				return fmt.Errorf("%w: page %d is dirty or under writeback, but its slot is not marked", errTree, p.index)
			}
		}
	}
	return nil
}
