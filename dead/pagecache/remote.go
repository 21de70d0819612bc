package pagecache

import "understudy.dev/understudy/dead/addr"

// Remote reports whether a file system is one of a server's that is understood: NFS or SMB.
func (s *Superblock) Remote() bool { return s.nfs() || s.smb() }

// maxServer bounds the name of a server, in bytes (include/linux/nfs_fs_sb.h, NFS4_MAXNAMLEN; a
// name of the DNS is no longer).
const maxServer = 255

// Server is whose a Remote file system is, as it was named at the mount: a name, or an address.
func (c *Cache) Server(s *Superblock) (string, error) {
	if s.smb() {
		share, err := c.share(s)
		return share.server, err
	}
	return c.nfsServer(s)
}

// onServer is what a dentry that has none above it stands for on the server, without a slash at
// its beginning.
func (c *Cache) onServer(s *Superblock, dentry addr.Virt) (string, error) {
	if s.smb() {
		share, err := c.share(s)
		return share.top, err
	}
	return c.exportOf(dentry)
}
