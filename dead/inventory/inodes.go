package inventory

import (
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
)

// inodes returns the regular files that a query is about, by what the kernel noted of them, and the addresses of those of which a
// change of size or extents is not committed. It notes in found what it did not get: also the inodes that the kernel had dropped from
// memory before their changes were committed, and that the kernel's types do not tell what is not committed.
func (f *FileSystem) inodes(q Query, found *Found) (files []*pagecache.Inode, uncommitted map[addr.Virt]struct{}) {
	c, s := f.image.Cache, f.Super
	uncommitted = make(map[addr.Virt]struct{})
	var all map[addr.Virt]struct{} // nil where Dropped yields nothing
	if s.Type == "xfs" || s.Type == "btrfs" {
		all = make(map[addr.Virt]struct{})
	}
	pending, unknown := f.pending()
	if unknown != nil {
		found.note(fmt.Errorf("files that were written and not committed are left out, since it cannot be told which they are: %w", unknown))
	}
	look := func(i *pagecache.Inode) bool {
		if all != nil {
			all[i.Addr] = struct{}{}
		}
		if !i.Regular() || i.Deleted() || pending == nil || !pending(i) {
			return false
		}
		uncommitted[i.Addr] = struct{}{}
		return true
	}
	walk := c.Inodes(s)
	switch {
	case q.All || s.InMemory():
	case pending == nil && all == nil:
		walk = c.DirtyOr(s, nil)
	default:
		walk = c.DirtyOr(s, look)
	}
	for i, err := range walk {
		if err != nil {
			found.note(err)
			continue
		}
		if _, ok := uncommitted[i.Addr]; !ok {
			look(i) // it is dirty: DirtyOr did not ask
		}
		if i.Regular() && !f.own(i) {
			files = append(files, i)
		}
	}
	if unknown == nil { // otherwise, what was dropped is not known either
		for err := range c.Dropped(s, all) {
			found.note(err)
		}
	}
	return files, uncommitted
}

// pending returns a function that reports whether a change of a file's size or extents may not be committed; nil if that is so of no
// file. A file of which it cannot be told counts.
func (f *FileSystem) pending() (func(*pagecache.Inode) bool, error) {
	if f.Super.InMemory() || f.Server != "" {
		return nil, nil
	}
	test, err := f.image.Cache.Uncommitted(f.Super)
	if test == nil {
		return nil, err
	}
	return func(i *pagecache.Inode) bool {
		yes, err := test(i)
		return yes || err != nil
	}, nil
}
