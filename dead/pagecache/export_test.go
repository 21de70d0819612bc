package pagecache

// Unmarked is unmarked, of all of a file.
func (c *Cache) Unmarked(i *Inode) error {
	return c.unmarked(i, i.unit.End(i.Size))
}
