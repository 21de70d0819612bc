package audit

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

const (
	maxLinks = 65000   // EXT4_LINK_MAX
	maxDepth = 1 << 12 // depth of nested directories
)

// checkLinks checks that each inode has as many links as there are entries for it, and
// that the directories are one tree.
func (c *checker) checkLinks() {
	delta, names := c.countEntries()
	for _, i := range c.all() {
		n := i.number
		if !c.note(c.checkCount(i, delta[n])) || !c.note(c.checkOneName(i, names[n])) {
			return
		}
	}
	for _, n := range sorted(delta) {
		if c.inodes[n] == nil && delta[n] != 0 && !c.note(fmt.Errorf("inode %d gets %+d names, but does not change", n, delta[n])) {
			return
		}
	}
	for e, count := range c.edges {
		if count < 0 {
			continue
		}
		if !c.note(c.checkEdge(e, count)) {
			return
		}
	}
	c.note(c.checkTree())
}

// countNames is countEntries, with a delta for every touched inode, if only 0.
func (c *checker) countNames() (map[addr.Ino]int, map[addr.Ino]kinds) {
	delta, names := c.countEntries()
	for n := range c.inodes {
		delta[n] += 0
	}
	return delta, names
}

// countEntries returns how many more entries there are for each inode for which that number
// changes, and how many more of them are names, by type. "." and ".." are no names.
func (c *checker) countEntries() (map[addr.Ino]int, map[addr.Ino]kinds) {
	delta, names := make(map[addr.Ino]int, len(c.edges)), make(map[addr.Ino]kinds, len(c.edges))
	for e, count := range c.edges {
		if count == 0 {
			delete(c.edges, e)
			continue
		}
		delta[e.ino] += count
		if e.role == child {
			k := names[e.ino]
			k[e.kind%byte(len(k))] += count
			names[e.ino] = k
		}
	}
	return delta, names
}

// checkCount checks that the links of an inode change as the entries for it do.
func (c *checker) checkCount(i *inode, delta int) error {
	was, now := 0, 0
	if i.old != nil {
		was = int(i.old.Links)
	}
	if i.new != nil {
		now = int(i.new.Links)
	}
	if i.old.live() && was == 1 || i.new.live() && now == 1 {
		return c.checkManyLinks(i, was, now, delta)
	}
	if was+delta != now {
		return fmt.Errorf("inode %d goes from %d links to %d, but gets %+d names", i.number, was, now, delta)
	}
	if now > maxLinks {
		return fmt.Errorf("inode %d has %d links", i.number, now)
	}
	return nil
}

// checkManyLinks is checkCount for directories that had so many links that these are
// no longer counted: i_links_count is 1 (fs/ext4/namei.c, ext4_inc_count).
func (c *checker) checkManyLinks(i *inode, was, now, delta int) error {
	switch {
	case !i.new.inUse():
		return nil // it was such a directory, and is gone
	case now != 1 || was != 1 && was+delta <= maxLinks || !i.new.IsDir() || c.new.super.ROCompat&ext4.ROCompatDirNlink == 0 || i.new.Flags&ext4.InodeIndex == 0:
		return fmt.Errorf("directory %d goes from %d links to %d, but gets %+d names (with the .. of subdirectories)", i.number, was, now, delta)
	}
	return nil
}

// kinds is how many more names an inode has than before, by the type in the entries.
type kinds [8]int

// sum is how many more names of all types it has.
func (k kinds) sum() (n int) {
	for _, count := range k {
		n += count
	}
	return n
}

// checkOneName checks that a directory has one name, and that no inode keeps a name from
// when it was another kind of file.
func (c *checker) checkOneName(i *inode, names kinds) error {
	n := i.number
	if n == rootInode || !i.isDir() && !i.turned() {
		return nil
	}
	if i.turned() {
		if c.new.super.Incompat&ext4.IncompatFiletype == 0 {
			return foreignf("inode %d becomes another kind of file: not understood", n)
		}
		if got, had := names[fileKinds[i.old.Mode>>12]], i.old.names(); got != -had {
			return fmt.Errorf("inode %d becomes another kind of file, and loses %d names of %d", n, -got, had)
		}
		if got, has := names[fileKinds[i.new.Mode>>12]], i.new.names(); got != has {
			return fmt.Errorf("inode %d becomes another kind of file, and gets %d names of %d", n, got, has)
		}
		return nil
	}
	if want, got := i.new.names()-i.old.names(), names.sum(); got != want {
		return fmt.Errorf("directory %d gets %+d names instead of %+d", n, got, want)
	}
	return nil
}

// turned reports whether an inode is another kind of file than before.
func (i *inode) turned() bool {
	return i.old.inUse() && i.new.inUse() && i.old.Mode>>12 != i.new.Mode>>12
}

// names returns how many names an inode has. A directory has one: its other links
// are its "." and the ".." of the directories in it.
func (s *state) names() int {
	switch {
	case !s.inUse():
		return 0
	case s.IsDir():
		return 1
	}
	return int(s.Links)
}

// inUse reports whether an inode has links.
func (s *state) inUse() bool { return s != nil && s.Links > 0 }

// checkEdge judges an entry that is new.
func (c *checker) checkEdge(e edge, count int) error {
	var target *ext4.Inode
	if i := c.inodes[e.ino]; i != nil && i.new != nil {
		target = i.new.Inode
	} else if i != nil {
		return fmt.Errorf("directory %d has a name for inode %d, which is free", e.dir, e.ino)
	} else {
		var err error
		if target, err = c.new.load(e.ino); err != nil {
			return fmt.Errorf("directory %d has an entry for no valid inode: %w", e.dir, err)
		}
	}
	kind := byte(0)
	if c.new.super.Incompat&ext4.IncompatFiletype != 0 {
		kind = fileKinds[target.Mode>>12]
	}
	switch {
	case target.Links == 0:
		return fmt.Errorf("directory %d has a name for inode %d, which has no links", e.dir, e.ino)
	case e.kind != kind:
		return fmt.Errorf("directory %d has inode %d with type %d instead of %d", e.dir, e.ino, e.kind, kind)
	case !target.IsDir():
		return nil
	case e.role == parent && e.dir != rootInode && c.edges[edge{e.ino, e.dir, e.kind, child}] != 1:
		return fmt.Errorf("directory %d has a new parent %d, which has no new name for it", e.dir, e.ino)
	case e.role == parent && e.dir == rootInode && e.ino != rootInode:
		return errors.New("the root directory has another parent than itself")
	case e.role != child:
		return nil
	case count != 1:
		return fmt.Errorf("directory %d has %d names for directory %d", e.dir, count, e.ino)
	}
	up, err := c.parent(e.ino)
	if err != nil {
		return err
	}
	if up != e.dir {
		return fmt.Errorf("directory %d is in %d, and its .. is %d", e.ino, e.dir, up)
	}
	return nil
}

// parent returns the directory that a directory says it is in.
func (c *checker) parent(n addr.Ino) (addr.Ino, error) {
	i, err := c.new.load(n)
	if err != nil {
		return 0, err
	}
	m := mapper{v: c.new, inode: i}
	if err := m.index(); err != nil {
		return 0, fmt.Errorf("directory %d: %w", n, err)
	}
	if len(m.out.leaves) > 1 {
		m.out.leaves = m.out.leaves[:1]
	}
	if err := m.read(); err != nil {
		return 0, fmt.Errorf("directory %d: %w", n, err)
	}
	if x := m.out.extents; !i.IsDir() || len(x) == 0 || x[0].logical != 0 {
		return 0, fmt.Errorf("inode %d is not a directory, or has no first block", n)
	}
	b, err := c.new.block(m.out.extents[0].start)
	if err != nil {
		return 0, err
	}
	list, err := c.new.lenient(b)
	if err != nil || len(list) < 2 || string(list[1].name) != ".." {
		return 0, fmt.Errorf(`directory %d has no ".."`, n)
	}
	return list[1].ino, nil
}

// checkTree checks that each directory that has a new name is below the root
// directory. Directories above it without a new name are where they were, and so
// below the root, unless one of them was moved below itself.
func (c *checker) checkTree() error {
	connected := map[addr.Ino]struct{}{rootInode: {}}
	moved := false
	for e, count := range c.edges {
		i := c.inodes[e.ino]
		moved = moved || e.role == child && count > 0 && (i == nil || i.old.live() && i.new.live())
	}
	for e, count := range c.edges {
		if e.role != child || count < 0 || e.kind != 0 && e.kind != fileKinds[4] {
			continue
		}
		if i := c.inodes[e.ino]; i != nil && !i.new.live() {
			continue
		}
		at, path := e.dir, []addr.Ino{e.ino}
		for len(path) < maxDepth {
			if _, ok := connected[at]; ok {
				break
			}
			if i := c.inodes[at]; !moved && (i == nil || i.old.live()) {
				break
			}
			path = append(path, at)
			var err error
			if at, err = c.parent(at); err != nil {
				return err
			}
		}
		if len(path) == maxDepth {
			return fmt.Errorf("directory %d is not below the top directory", e.ino)
		}
		for _, n := range path {
			connected[n] = struct{}{}
		}
	}
	return nil
}
