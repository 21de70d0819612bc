package pagecache

import "understudy.dev/understudy/dead/addr"

// Remote reports whether a file system is on a server, and of a type that is understood: NFS or SMB.
func (s *Superblock) Remote() bool { return s.nfs() || s.smb() }

// maxServer bounds the name of a server, in bytes (include/linux/nfs_fs_sb.h, NFS4_MAXNAMLEN; DNS
// names are not longer).
const maxServer = 255

// Server returns the server of a Remote file system as it was named at the mount: a name, or an address.
func (c *Cache) Server(s *Superblock) (string, error) {
	if s.smb() {
		share, err := c.share(s)
		return share.server, err
	}
	return c.nfsServer(s)
}

// onServer returns the path on the server that a dentry without a parent stands for, without a
// leading slash.
func (c *Cache) onServer(s *Superblock, dentry addr.Virt) (string, error) {
	if s.smb() {
		share, err := c.share(s)
		return share.top, err
	}
	return c.exportOf(dentry)
}
