package pagecache

// Unmarked is unmarked for a whole file.
func (c *Cache) Unmarked(i *Inode) error {
	return c.unmarked(i, i.unit.End(i.Size))
}
