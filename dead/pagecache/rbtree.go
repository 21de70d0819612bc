package pagecache

import (
	"errors"
	"iter"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// rbLayout says where structures have the links of a red-black tree (include/linux/rbtree_types.h, struct rb_node).
type rbLayout struct {
	size        int // of the structure
	left, right kernel.Field
}

// newRBLayout finds the links at a path of a structure.
func newRBLayout(l *kernel.Layout, path string) rbLayout {
	return rbLayout{l.Size, l.Field(path+".rb_left", 8), l.Field(path+".rb_right", 8)}
}

// maxRBNodes bounds the nodes in a tree. One of that many nodes is less than maxRBDepth deep.
const (
	maxRBNodes = 1 << 20
	maxRBDepth = 64
)

var errRBTree = errors.New("a red-black tree is too large, or circular")

// node is where the rb_node is: its rb_left is behind two words.
func (l rbLayout) node() addr.Virt { return addr.Virt(l.left.Off - 16) }

// inOrder yields the structures in a red-black tree, ascending. root is the address of its first node.
func (c *Cache) inOrder(root addr.Virt, l rbLayout) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		seen := 0
		var below func(at addr.Virt, depth int) bool
		below = func(at addr.Virt, depth int) bool {
			if at == 0 {
				return true
			}
			if seen++; seen > maxRBNodes || depth > maxRBDepth {
				yield(nil, errRBTree)
				return false
			}
			b, err := c.k.Bytes(at-l.node(), l.size)
			if err != nil {
				yield(nil, err)
				return false
			}
			return below(l.left.Pointer(b), depth+1) && yield(b, nil) && below(l.right.Pointer(b), depth+1)
		}
		below(root, 0)
	}
}
