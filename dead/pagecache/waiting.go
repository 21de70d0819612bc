package pagecache

import "understudy.dev/understudy/dead/addr"

// Waiting counts the files of a file system of any type that have pages which are dirty or
// under writeback, and the bytes of those pages. It relies only on what all file systems have
// in common, and does not check the content of the pages. If something cannot be read, it
// returns an error and what it could count.
func (c *Cache) Waiting(s *Superblock) (files int, bytes int64, err error) {
	for i, bad := range c.Dirty(s) {
		if bad != nil {
			err = bad
			continue
		}
		n := int64(0)
		c.marked(i, 1<<50, func(at slotted, bad error) bool {
			if bad != nil {
				err = bad
				return true
			}
			pages := at.pages
			if p, bad := c.page(addr.Virt(at.entry)); bad == nil {
				if at.index != p.index {
					return true // counted with its first page
				}
				pages = max(pages, p.pages)
			}
			n += int64(min(pages, 1<<40)) << c.k.Pages()
			return true
		})
		if n > 0 && !i.Deleted() {
			files++
			bytes += n
		}
	}
	return files, bytes, err
}
