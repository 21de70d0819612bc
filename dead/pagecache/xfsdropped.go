package pagecache

import (
	"errors"
	"fmt"
	"iter"

	"understudy.dev/understudy/dead/addr"
)

// ErrDropped is the cause of the refusals of Dropped.
var ErrDropped = errors.New("the kernel had dropped it from memory while a change of it waited for the log")

// Dropped yields a *Refusal for each file, directory or link of which a change waits for the log, although the VFS has dropped its
// inode: memory has neither its names nor its pages. listed has the addresses of the inodes that the VFS has (Cache.Inodes). Deleted
// inodes are left out. XFS itself keeps an inode in the tree of its allocation group (pag_ici_root) as long as it is pinned
// (fs/xfs/xfs_icache.c, xfs_reclaim_inode). Any other error says that the walk was not completed.
func (x *XFS) Dropped(listed map[addr.Virt]struct{}) iter.Seq[error] {
	return func(yield func(error) bool) {
		if err := x.layout.groupErr; err != nil {
			yield(fmt.Errorf("walk inodes of %s: %w", x.s.ID, err))
			return
		}
		for group, err := range x.c.pointers(x.s.info + addr.Virt(x.layout.groups.Off)) {
			if err == nil {
				err = x.ofMount(group)
			}
			if err != nil {
				yield(fmt.Errorf("walk inodes of %s: groups: %w", x.s.ID, err))
				return
			}
			for at, err := range x.c.pointers(group + addr.Virt(x.layout.groupInodes.Off)) {
				if err == nil {
					err = x.dropped(at, listed)
				}
				if err != nil && !yield(err) {
					return
				}
			}
		}
	}
}

// ofMount checks that an allocation group belongs to the file system.
func (x *XFS) ofMount(group addr.Virt) error {
	mount, err := x.c.k.Pointer(x.layout.groupMount.In(group))
	if err == nil && mount != x.s.info {
		err = fmt.Errorf("the one at %v belongs to the mount at %v", group, mount)
	}
	return err
}

// dropped returns a *Refusal if an inode is pinned, not deleted, and not listed.
func (x *XFS) dropped(at addr.Virt, listed map[addr.Virt]struct{}) error {
	l, vfs := x.layout, &x.c.layout.inode
	inode := at + addr.Virt(l.inode.Off)
	if _, ok := listed[inode]; ok {
		return nil
	}
	b, err := x.own(&Inode{Addr: inode})
	if err != nil {
		return err
	}
	in := b[l.inode.Off:]
	if l.pins.Uint(b) == 0 || vfs.nlink.Uint(in) == 0 || vfs.mode.Uint(in) == 0 {
		return nil
	}
	return &Refusal{Inode: addr.Ino(vfs.ino.Uint(in)), Reason: Partial, Cause: ErrDropped}
}
