package pagecache

import (
	"errors"
	"fmt"
	"iter"
	"strings"

	"understudy/addr"
	"understudy/kernel"
)

// maxMountDepth bounds how deep file systems are mounted in one another.
const maxMountDepth = 64

// mountLayout is struct mount (fs/mount.h).
type mountLayout struct {
	size                      int
	parent, point, super, sib kernel.Field
	mounts                    kernel.Field // in super_block
}

func (c *Cache) mountLayout() (*mountLayout, error) {
	l := c.k.Types().Layout("mount")
	m := &mountLayout{size: l.Size}
	m.parent, m.point = l.Field("mnt_parent", 8), l.Field("mnt_mountpoint", 8)
	m.super = l.Field("mnt.mnt_sb", 8)
	m.sib = l.Field("mnt_instance", 16)
	s := c.k.Types().Layout("super_block")
	m.mounts = s.Field("s_mounts", 16)
	return m, errors.Join(l.Err(), s.Err())
}

// MountPoints yields the paths at which a file system is mounted, in any mount
// namespace, each from the top of that. A path that cannot be told is an error,
// and the walk goes on.
func (c *Cache) MountPoints(s *Superblock) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		m, err := c.mountLayout()
		if err != nil {
			yield("", fmt.Errorf("find mounts of %s: %w", s.ID, err))
			return
		}
		for at, err := range c.list(m.mounts.In(s.Addr)) {
			path := ""
			if err == nil {
				path, err = c.mountPoint(m, at-addr.Virt(m.sib.Off))
			}
			if err != nil {
				err = fmt.Errorf("find mounts of %s: %w", s.ID, err)
			}
			if !yield(path, err) {
				return
			}
		}
	}
}

// mountPoint follows a mount to the top of its namespace, which is its own parent.
func (c *Cache) mountPoint(m *mountLayout, at addr.Virt) (string, error) {
	path := ""
	for range maxMountDepth {
		b, err := c.k.Bytes(at, m.size)
		if err != nil {
			return "", fmt.Errorf("read mount: %w", err)
		}
		parent := m.parent.Pointer(b)
		if parent == at {
			return "/" + strings.TrimSuffix(path, "/"), nil
		}
		above, err := c.k.Bytes(parent, m.size)
		if err != nil {
			return "", fmt.Errorf("read mount: %w", err)
		}
		s, err := c.superblock(m.super.Pointer(above))
		if err != nil {
			return "", err
		}
		here, err := c.Paths(s).path(m.point.Pointer(b))
		if err != nil {
			return "", err
		}
		if here != "" {
			path = here + "/" + path
		}
		if len(path) > maxPath {
			return "", fmt.Errorf("mount point is longer than %d bytes", maxPath)
		}
		at = parent
	}
	return "", fmt.Errorf("mount at %v is more than %d levels deep", at, maxMountDepth)
}
