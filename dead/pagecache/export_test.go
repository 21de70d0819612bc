package pagecache

import "understudy.dev/understudy/dead/addr"

// Unmarked is unmarked, of all of a file.
func (c *Cache) Unmarked(i *Inode) error {
	return c.unmarked(i, addr.Index(addr.AlignUp(i.Size)>>addr.PageShift))
}
