package pagecache

import (
	"errors"
	"fmt"
	"iter"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// UUID identifies a file system.
type UUID = addr.UUID

// Superblock is a mounted file system.
type Superblock struct {
	Addr      addr.Virt // of its struct super_block
	Type      string    // such as "ext4"
	ID        string    // s_id: the name of the device, such as "vda1"
	UUID      UUID      // zero if the file system sets none
	MountUUID UUID      // s_uuid: the UUID at the time of the mount
	Dev       addr.Dev
	Flags     uint64 // SB_*, include/linux/fs.h
	BlockSize uint64 // in bytes

	root   addr.Virt // the dentry of its top directory
	bdi    addr.Virt
	info   addr.Virt // of the file system's own structure
	sync   bool      // a sync(2) or syncfs(2) was in flight, or it is not known whether one was
	failed bool      // a write to it has failed
}

// ReadOnly reports whether it is mounted read-only (SB_RDONLY).
func (s *Superblock) ReadOnly() bool { return s.Flags&1 != 0 }

// FirstFile returns the lowest number that a file has, where the type alone tells it; zero elsewhere. An inode with a lower one
// may look like a file: what a file system makes with new_inode for itself keeps, up to 6.1 at least, the mode of an inode
// that was in its place before (fs/inode.c, inode_init_always).
func (s *Superblock) FirstFile() addr.Ino {
	switch s.Type {
	case "ext2", "ext3", "ext4":
		return 11 // EXT4_GOOD_OLD_FIRST_INO (fs/ext4/ext4.h)
	case "btrfs":
		return 256 // BTRFS_FIRST_FREE_OBJECTID (include/uapi/linux/btrfs_tree.h)
	case "vfat", "msdos":
		return 3 // after MSDOS_FSINFO_INO (fs/fat/fat.h)
	}
	return 0
}

// HasBuffers reports whether its pages carry buffer heads that are understood.
func (s *Superblock) HasBuffers() bool {
	return s.Type == "ext4" || s.Type == "ext3" || s.Type == "ext2"
}

// maxName bounds the name of a type of file system, in bytes.
const maxName = 64

// Superblocks yields all file systems that are mounted anywhere, including the
// kernel's internal ones. One that cannot be read is yielded as an error, and
// the walk goes on.
func (c *Cache) Superblocks() iter.Seq2[*Superblock, error] {
	return func(yield func(*Superblock, error) bool) {
		head, err := c.k.Symbol("super_blocks") // fs/super.c
		if err != nil {
			yield(nil, fmt.Errorf("walk superblocks: %w", err))
			return
		}
		for at, err := range c.List(head) {
			if err != nil {
				yield(nil, fmt.Errorf("walk superblocks: %w", err))
				return
			}
			if !yield(c.superblock(at - addr.Virt(c.layout.super.list.Off))) {
				return
			}
		}
	}
}

func (c *Cache) superblock(at addr.Virt) (*Superblock, error) {
	l := &c.layout.super
	b, err := c.k.Bytes(at, l.size)
	if err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	s := &Superblock{
		Addr:      at,
		ID:        l.id.String(b),
		MountUUID: UUID(l.uuid.Bytes(b)),
		Dev:       addr.Dev(l.dev.Uint(b)),
		Flags:     l.flags.Uint(b),
		BlockSize: l.blockSize.Uint(b),
		root:      l.root.Pointer(b),
		bdi:       l.bdi.Pointer(b),
		info:      l.info.Pointer(b),
		sync:      !l.sync.Free(b),
	}
	s.failed = l.wrong.Present() && wentWrong(l.wrong.Uint(b))
	name, err := c.k.Pointer(l.typeName.In(l.typ.Pointer(b)))
	if err != nil {
		return nil, fmt.Errorf("read type of superblock %.32q: %w", s.ID, err)
	}
	if s.Type, err = c.k.CString(name, maxName); err != nil {
		return nil, fmt.Errorf("read type of superblock %.32q: %w", s.ID, err)
	}
	s.UUID = s.MountUUID
	if on, err := c.extSuper(s); err == nil {
		s.UUID = on.UUID
	}
	return s, nil
}

// Had reports whether id is the UUID of a file system, or was when it was mounted. The UUID of an ext4 may be changed
// while it is mounted (tune2fs -U; fs/ext4/ioctl.c, ext4_ioctl_setuuid, since 6.0), and its disk may have either.
func (s *Superblock) Had(id UUID) bool { return s.UUID == id || s.MountUUID == id }

// ErrNotMounted says that no file system with a UUID is mounted.
var ErrNotMounted = errors.New("not mounted in this kernel")

// Superblock returns the file system with a UUID, or else the one that had it when it was mounted.
func (c *Cache) Superblock(id UUID) (*Superblock, error) {
	var found, had []*Superblock
	var errs []error
	for s, err := range c.Superblocks() {
		switch {
		case err != nil:
			errs = append(errs, err)
		case s.UUID == id:
			found = append(found, s)
		case s.Had(id):
			had = append(had, s)
		}
	}
	if len(found) == 0 {
		found = had
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("file system %v: %w", id, errors.Join(append(errs, ErrNotMounted)...))
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("file system %v: %w: mounted as %s and as %s", id, kernel.ErrAmbiguous, found[0].ID, found[1].ID)
}

// Quotas reports whether a file system charges allocations to quotas, however they were
// turned on (include/linux/quota.h, struct quota_info: the flags for each type of quota).
func (c *Cache) Quotas(s *Superblock) (bool, error) {
	l := c.k.Types().Layout("super_block")
	flags := l.Field("s_dquot.flags", 4)
	if err := l.Err(); err != nil {
		return false, fmt.Errorf("look for quotas of %s: %w", s.ID, err)
	}
	v, err := c.k.U32(flags.In(s.Addr))
	return v != 0, err
}
