package pagecache

import (
	"errors"
	"fmt"
	"iter"
	"strings"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// maxMountDepth bounds how deep file systems are mounted in one another.
const maxMountDepth = 64

// mountLayout is struct mount (fs/mount.h).
type mountLayout struct {
	size                      int
	parent, point, super, sib kernel.Field
	back                      kernel.Field // the back pointer of sib, if the list has a single pointer as its head
	space                     kernel.Field // mnt_ns
	mounts                    kernel.Field // in super_block
}

func (c *Cache) mountLayout() (*mountLayout, error) {
	l := c.k.Types().Layout("mount")
	m := &mountLayout{size: l.Size}
	m.parent, m.point = l.Field("mnt_parent", 8), l.Field("mnt_mountpoint", 8)
	m.super = l.Field("mnt.mnt_sb", 8)
	m.space = l.Field("mnt_ns", 8)
	s := c.k.Types().Layout("super_block")
	// A list_head before 6.18 (commit 09a1b33c080f), then a list that ends with a null
	// pointer, in which each entry points back to the pointer to it.
	if m.sib = l.Optional("mnt_instance", 16); m.sib.Present() {
		m.mounts = s.Field("s_mounts", 16)
	} else {
		m.sib, m.back = l.Field("mnt_next_for_sb", 8), l.Field("mnt_pprev_for_sb", 8)
		m.mounts = s.Field("s_mounts", 8)
	}
	return m, errors.Join(l.Err(), s.Err())
}

// MountPoint is where a file system is mounted.
type MountPoint struct {
	Path string // from the top of its mount namespace
	// Elsewhere says that the namespace is not that of the kernel's first task. Programs
	// run in that one unless they were given their own, as containers and sandboxed
	// services are.
	Elsewhere bool
}

// MountPoints yields where a file system is mounted, in any mount namespace. A path
// that cannot be read is yielded as an error, and the walk goes on.
func (c *Cache) MountPoints(s *Superblock) iter.Seq2[MountPoint, error] {
	return func(yield func(MountPoint, error) bool) {
		m, err := c.mountLayout()
		if err != nil {
			yield(MountPoint{}, fmt.Errorf("find mounts of %s: %w", s.ID, err))
			return
		}
		first, known := c.firstNamespace()
		for at, err := range c.mountsOf(m, s) {
			var point MountPoint
			var space addr.Virt
			if err == nil {
				point.Path, space, err = c.mountPoint(m, at)
			}
			if err != nil {
				err = fmt.Errorf("find mounts of %s: %w", s.ID, err)
			}
			point.Elsewhere = known && space != first
			if !yield(point, err) {
				return
			}
		}
	}
}

// firstNamespace returns the mount namespace of the first task (init/init_task.c), and
// whether it is known.
func (c *Cache) firstNamespace() (addr.Virt, bool) {
	task, proxy := c.k.Types().Layout("task_struct"), c.k.Types().Layout("nsproxy")
	of, space := task.Field("nsproxy", 8), proxy.Field("mnt_ns", 8)
	at, err := c.k.Symbol("init_task")
	if err = errors.Join(err, task.Err(), proxy.Err()); err != nil {
		return 0, false
	}
	if at, err = c.k.Pointer(of.In(at)); err == nil {
		at, err = c.k.Pointer(space.In(at))
	}
	return at, err == nil
}

// maxMounts bounds how many mounts one file system has.
const maxMounts = 1 << 16

// mountsOf yields the mounts of a file system.
func (c *Cache) mountsOf(m *mountLayout, s *Superblock) iter.Seq2[addr.Virt, error] {
	head := m.mounts.In(s.Addr)
	return func(yield func(addr.Virt, error) bool) {
		if !m.back.Present() {
			for at, err := range c.List(head) {
				if !yield(at-addr.Virt(m.sib.Off), err) {
					return
				}
			}
			return
		}
		pointer := head
		at, err := c.k.Pointer(head)
		for n := 0; err == nil && at != 0 && n < maxMounts; n++ {
			var b []byte
			if b, err = c.k.Bytes(at, m.size); err != nil {
				break
			}
			// The lowest bit is a flag (fs/mount.h, WRITE_HOLD).
			if back := m.back.Pointer(b) &^ 1; back != pointer {
				err = fmt.Errorf("%w: mount at %v points back to %v, not %v", ErrList, at, back, pointer)
				break
			}
			if !yield(at, nil) {
				return
			}
			pointer, at = m.sib.In(at), m.sib.Pointer(b)
		}
		if err != nil {
			yield(0, fmt.Errorf("walk mounts: %w", err))
		}
	}
}

// errorPointers is the lowest value of a pointer that is an error instead
// (include/linux/err.h, MAX_ERRNO). The kernel's own mounts have one as their
// namespace (fs/mount.h, MNT_NS_INTERNAL).
const errorPointers addr.Virt = 1<<64 - 4095

var errInternal = errors.New("mount is the kernel's own, in no namespace")

// mountPoint follows a mount up to the root mount of its namespace, which is its own parent.
func (c *Cache) mountPoint(m *mountLayout, at addr.Virt) (path string, space addr.Virt, err error) {
	for range maxMountDepth {
		b, err := c.k.Bytes(at, m.size)
		if err != nil {
			return "", 0, fmt.Errorf("read mount: %w", err)
		}
		parent := m.parent.Pointer(b)
		switch ns := m.space.Pointer(b); {
		case parent == at && (!ns.IsKernel() || ns >= errorPointers):
			return "", 0, errInternal
		case parent == at:
			return "/" + strings.TrimSuffix(path, "/"), ns, nil
		}
		above, err := c.k.Bytes(parent, m.size)
		if err != nil {
			return "", 0, fmt.Errorf("read mount: %w", err)
		}
		s, err := c.superblock(m.super.Pointer(above))
		if err != nil {
			return "", 0, err
		}
		here, err := c.within(s).path(m.point.Pointer(b))
		if err != nil {
			return "", 0, err
		}
		if here != "" {
			path = here + "/" + path
		}
		if len(path) > maxPath {
			return "", 0, fmt.Errorf("mount point is longer than %d bytes", maxPath)
		}
		at = parent
	}
	return "", 0, fmt.Errorf("mount at %v is more than %d levels deep", at, maxMountDepth)
}
