package inventory

import "understudy.dev/understudy/dead/pagecache"

// firstInode is the lowest number that a file of the ext family has, where the superblock does
// not say it (fs/ext4/ext4.h, EXT4_GOOD_OLD_FIRST_INO).
const firstInode = 11

// ownOf returns a function that reports which inodes are a file system's own: its journal, its quota
// files, its free space cache. If that cannot be read, every inode that is not known to be the file
// system's own counts as a file: one too many does no harm, one too few does.
func (m *Image) ownOf(s *pagecache.Superblock) func(*pagecache.Inode) bool {
	switch {
	case s.HasBuffers():
		e, err := m.Cache.Ext4(s)
		if err != nil {
			return func(i *pagecache.Inode) bool { return i.Ino < firstInode }
		}
		return e.Internal
	case s.Type == "xfs":
		if x, err := m.Cache.XFS(s); err == nil {
			return x.Internal
		}
	case s.Type == "btrfs":
		if b, err := m.Cache.Btrfs(s); err == nil {
			return b.Internal
		}
	}
	return nil
}
