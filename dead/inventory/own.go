package inventory

import "understudy.dev/understudy/dead/pagecache"

// ownOf returns a function that reports which inodes are a file system's own: its journal, its quota
// files, its free space cache. If that cannot be read, every inode that is not known to be the file
// system's own counts as a file: one too many does no harm, one too few does.
func (m *Image) ownOf(s *pagecache.Superblock) func(*pagecache.Inode) bool {
	var more func(*pagecache.Inode) bool
	switch {
	case s.HasBuffers():
		if e, err := m.Cache.Ext4(s); err == nil {
			more = e.Internal
		}
	case s.Type == "xfs":
		if x, err := m.Cache.XFS(s); err == nil {
			more = x.Internal
		}
	case s.Type == "btrfs":
		if b, err := m.Cache.Btrfs(s); err == nil {
			more = b.Internal
		}
	}
	first := s.FirstFile()
	return func(i *pagecache.Inode) bool { return i.Ino < first || more != nil && more(i) }
}
