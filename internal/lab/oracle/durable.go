package oracle

import (
	"maps"
	"path"
	"slices"

	"understudy.dev/understudy/internal/lab/oracle/page"
	"understudy.dev/understudy/internal/lab/oracle/script"
)

// CompareDurable compares only what was durable before the crash. It looks for names by
// the inode number of their directory: directories above may have moved.
func (c *Crashed) CompareDurable(found Tree) Comparison {
	var out Comparison
	if found.Error != "" {
		out.Findings = append(out.Findings, Finding{What: found.Error, Durable: true})
		return out
	}
	places := found.places()
	for i := range c.Threads {
		t := &c.Threads[i]
		cmp := &comparer{thread: t, touched: t.touched(), found: found}
		if c.Config.remakes() { // btrfs may count fewer links than there are names
			cmp.remade = &remade{unrescued: true}
		}
		t.Before.Top.Walk(threadDir(i), func(at string, n *script.Node) {
			out.Nodes++
			if !n.Durable() || cmp.touched[n.ID] || len(n.Names) == 0 {
				return
			}
			out.Durable++
			cmp.durable(at, n, places)
		})
		out.Findings = append(out.Findings, cmp.out...)
	}
	return out
}

// durable looks for a node under each of its names.
func (c *comparer) durable(at string, n *script.Node, places map[place]page.Entry) {
	for _, name := range n.Names {
		dir := name.Dir.Ino
		if dir == 0 {
			continue // the thread's own directory, in which nothing happened yet
		}
		e, ok := places[place{dir, name.Base}]
		if !ok {
			c.find(at, n, "missing as %q in inode %d", name.Base, dir)
			continue
		}
		c.node(at, n, e)
		if !n.Dir() {
			continue
		}
		for _, base := range slices.Sorted(maps.Keys(n.Children)) {
			if child := n.Children[base]; places[place{n.Ino, base}].Ino != child.Ino {
				c.find(path.Join(at, base), n, "inode %d, want %d", places[place{n.Ino, base}].Ino, child.Ino)
			}
		}
		for p, e := range places {
			if p.dir == n.Ino && n.Children[p.base] == nil {
				c.find(path.Join(at, p.base), n, "inode %d is too much", e.Ino)
			}
		}
	}
}
