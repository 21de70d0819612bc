package inventory

import "understudy.dev/understudy/dead/pagecache"

// firstInode is the lowest number that a file of the ext family has, where the superblock does
// not say it (fs/ext4/ext4.h, EXT4_GOOD_OLD_FIRST_INO).
const firstInode = 11

// ownOf says which regular files are a file system's own: its journal, what it counts quotas in,
// what it keeps about free space. Where that cannot be read, all that are not known to be are files:
// one too many does no harm, one too few does.
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
