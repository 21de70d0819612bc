package pagecache

import (
	"errors"
	"fmt"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// Bits of Inode.Flags (include/linux/fs.h, S_*; the same from 5.10 on).
const (
	FlagNoAtime   = 1 << 1
	FlagAppend    = 1 << 2
	FlagImmutable = 1 << 3
	FlagNoQuota   = 1 << 5
	FlagDAX       = 1 << 13
	FlagEncrypted = 1 << 14
	FlagVerity    = 1 << 16
)

// Types of file in Inode.Mode (include/uapi/linux/stat.h).
const (
	ModeType    = 0o170000
	ModeRegular = 0o100000
	ModeDir     = 0o040000
	ModeLink    = 0o120000
)

// Inode is a file as the kernel has it in memory, where it may be ahead of the
// disk.
type Inode struct {
	Addr       addr.Virt // of its struct inode
	Ino        addr.Ino
	Generation uint32
	Mode       uint16 // type and permissions
	UID, GID   uint32 // as the initial user namespace sees them
	NLink      uint32
	Size       int64 // in bytes
	Atime      time.Time
	Mtime      time.Time
	Ctime      time.Time
	Flags      uint32 // Flag*
	State      uint64 // I_*: their values differ between kernels
	Sectors    uint64 // of 512 bytes, allocated to it; what is only reserved does not count
	Writing    bool   // its i_rwsem is held for writing: an operation on it is in flight
	Shared     bool   // programs may write to its pages through shared mappings, without that lock
	New        bool   // it was being created, and had no name yet (I_NEW)
	Device     uint32 // of a device file: 20 bits of the minor number below the major number (include/linux/kdev_t.h)
	ACL        bool   // it has an ACL beside its mode
	ACLUnknown bool   // it may have one: the kernel had not looked
	Failed     bool   // a write of its pages to the disk has failed while it was in memory

	mapping addr.Virt // of its own address_space
	tree    addr.Virt // of the xarray in mapping
	head    addr.Virt // xa_head, not yet checked
	marked  bool      // xa_flags say that some page is marked
	pages   uint64    // nrpages, not yet checked
	unit    addr.Pages
	blkbits uint // log2 of the size of its blocks, not yet checked
	queued  bool // on a list of a bdi_writeback, or of inodes under writeback
}

// Regular reports whether it is a regular file.
func (i *Inode) Regular() bool { return i.Mode&ModeType == ModeRegular }

// noSectors is the value of Sectors if the kernel does not tell it.
const noSectors = 1<<64 - 1

// HasData reports whether its pages are its content, as those of regular files and
// of long symbolic links are.
func (i *Inode) HasData() bool { return i.Regular() || i.Mode&ModeType == ModeLink }

// Deleted reports whether it has no name left, and is freed once it is closed.
func (i *Inode) Deleted() bool { return i.NLink == 0 }

type inodeLayout struct {
	size                                     int
	mode, uid, gid, flags, super, ino, nlink kernel.Field
	length, state, generation, data, pointer kernel.Field
	ioList, wbList, sbList, dentries, hash   kernel.Field
	blkbits, blocks, wrong, shared           kernel.Field
	device, acl                              kernel.Field
	rwsem                                    kernel.Lock
	tree, treeFlags, head, pages             kernel.Field
	atime, mtime, ctime                      timeField
}

func (i *inodeLayout) look(t *kernel.Types) error {
	l := t.Layout("inode")
	i.size = l.Size
	i.mode = l.Field("i_mode", 2)
	i.uid = l.Field("i_uid.val", 4)
	i.gid = l.Field("i_gid.val", 4)
	i.flags = l.Field("i_flags", 4)
	i.super = l.Field("i_sb", 8)
	i.ino = l.Field("i_ino", 8)
	i.nlink = l.Field("i_nlink", 4)
	i.length = l.Field("i_size", 8)
	// Inside a structure since 6.19 (struct inode_state_flags).
	i.state = l.First([]string{"i_state.__state", "i_state"}, 4, 8)
	i.generation = l.Field("i_generation", 4)
	i.pointer = l.Field("i_mapping", 8)
	i.data = l.Field("i_data")
	i.tree = l.Field("i_data.i_pages")
	i.treeFlags = l.Field("i_data.i_pages.xa_flags", 4)
	i.head = l.Field("i_data.i_pages.xa_head", 8)
	i.pages = l.Field("i_data.nrpages", 8)
	i.blkbits = l.Optional("i_blkbits", 1)
	i.rwsem = l.Lock("i_rwsem")
	i.blocks = l.Optional("i_blocks", 8)
	i.device, i.acl = l.Optional("i_rdev", 4), l.Optional("i_acl", 8)
	i.wrong = l.Optional("i_data.wb_err", 4)
	i.shared = l.Optional("i_data.i_mmap_writable.counter", 4)
	i.ioList = l.Field("i_io_list", 16)
	i.wbList = l.Field("i_wb_list", 16)
	i.sbList = l.Field("i_sb_list", 16)
	i.dentries = l.Field("i_dentry", 8)
	i.hash = l.Optional("i_hash.pprev", 8)
	i.atime = newTimeField(l, "atime")
	i.mtime = newTimeField(l, "mtime")
	i.ctime = newTimeField(l, "ctime")
	return l.Err()
}

// unborn reports whether an inode is empty and not hashed: the kernel is making it. It has its number by then, but may still have
// the i_disksize of the inode that was in its place of the slab cache before (fs/ext4/ialloc.c, __ext4_new_inode).
func (i *inodeLayout) unborn(b []byte) bool {
	return i.hash.Present() && i.hash.Uint(b) == 0 && i.dentries.Uint(b) == 0 && i.head.Uint(b) == 0 && i.pages.Uint(b) == 0 && i.length.Uint(b) == 0
}

// new returns the bit number of I_NEW in i_state (include/linux/fs.h): it moved when
// i_state became 32 bits wide, in 6.12 (commits 2ed634c96ed1 and 0fe340a98b58).
func (i *inodeLayout) new() int {
	if i.state.Size == 4 {
		return 0
	}
	return 3
}

// timeField is a point in time in an inode.
type timeField struct {
	sec, nsec kernel.Field
}

// newTimeField finds atime, mtime or ctime: two members since 6.11 (commit
// 3aa63a569c64), a timespec64 before, whose name got two underscores in 6.6
// (ctime, commit 13bc24457850) and 6.7 (the others, commit 12cd44023651).
func newTimeField(l *kernel.Layout, name string) timeField {
	return timeField{
		sec:  l.First([]string{"i_" + name + "_sec", "__i_" + name + ".tv_sec", "i_" + name + ".tv_sec"}, 8),
		nsec: l.First([]string{"i_" + name + "_nsec", "__i_" + name + ".tv_nsec", "i_" + name + ".tv_nsec"}, 4, 8),
	}
}

func (f timeField) in(b []byte) (time.Time, bool) {
	// Bit 31 of the nanoseconds may be a flag: I_CTIME_QUERIED since 6.13
	// (commit 4e40eff0b573).
	nsec := f.nsec.Uint(b) &^ (1 << 31)
	return time.Unix(int64(f.sec.Uint(b)), int64(nsec%1e9)), nsec < 1e9
}

// errNoFile says that an inode has neither number nor name nor pages: it stands for
// no file. Every new inode begins like this (new_inode, fs/inode.c), and vfat has one
// such inode from mount to unmount (fat_fill_super, fs/fat/inode.c).
var errNoFile = errors.New("inode stands for no file")

// inode reads the inode at an address and checks that it is plausible. If it belongs
// to another file system than s, the error is an otherSuper.
func (c *Cache) inode(at addr.Virt, s *Superblock) (*Inode, error) {
	l := &c.layout.inode
	b, err := c.k.Bytes(at, l.size)
	if err != nil {
		return nil, &Refusal{Reason: Unreadable, Cause: fmt.Errorf("read inode: %w", err)}
	}
	if super := l.super.Pointer(b); super != s.Addr {
		return nil, otherSuper{super}
	}
	i := &Inode{
		Addr:       at,
		Ino:        addr.Ino(l.ino.Uint(b)),
		Generation: uint32(l.generation.Uint(b)),
		Mode:       uint16(l.mode.Uint(b)),
		UID:        uint32(l.uid.Uint(b)),
		GID:        uint32(l.gid.Uint(b)),
		NLink:      uint32(l.nlink.Uint(b)),
		Size:       int64(l.length.Uint(b)),
		Flags:      uint32(l.flags.Uint(b)),
		State:      l.state.Uint(b),
		mapping:    l.data.In(at),
		tree:       l.tree.In(at),
		head:       l.head.Pointer(b),
		pages:      l.pages.Uint(b),
		unit:       c.k.Pages(),
	}
	if i.Sectors = noSectors; l.blocks.Present() {
		i.Sectors = l.blocks.Uint(b)
	}
	if l.blkbits.Present() {
		i.blkbits = uint(l.blkbits.Uint(b))
	}
	if l.device.Present() {
		i.Device = uint32(l.device.Uint(b))
	}
	if l.acl.Present() { // ACL_NOT_CACHED and the like are odd (include/linux/fs.h, posix_acl.h)
		acl := l.acl.Uint(b)
		i.ACLUnknown = acl&1 != 0
		i.ACL = acl != 0 && !i.ACLUnknown
	}
	i.New = i.State>>l.new()&1 != 0
	i.Failed = l.wrong.Present() && wentWrong(l.wrong.Uint(b))
	i.Writing = l.rwsem.Held(b)
	// A negative count means that shared writable mappings are denied.
	i.Shared = l.shared.Present() && int32(l.shared.Uint(b)) > 0
	// The upper bits of xa_flags are the marks of the whole tree (xarray.h,
	// XA_FLAGS_MARK); where they begin depends on the kernel (__GFP_BITS_SHIFT,
	// 23 to 28), but of the lower ones a page cache uses only the first six.
	i.marked = l.treeFlags.Uint(b)>>20 != 0
	i.queued = l.ioList.Pointer(b) != l.ioList.In(at) || l.wbList.Pointer(b) != l.wbList.In(at)
	var plausible [3]bool
	i.Atime, plausible[0] = l.atime.in(b)
	i.Mtime, plausible[1] = l.mtime.in(b)
	i.Ctime, plausible[2] = l.ctime.in(b)
	switch {
	case i.Ino == 0 && l.dentries.Pointer(b) == 0 && i.head == 0 && i.pages == 0:
		return nil, errNoFile
	case i.Size < 0:
		err = fmt.Errorf("size %d", i.Size)
	case plausible != [3]bool{true, true, true}:
		err = errors.New("implausible timestamps: nanoseconds out of range")
	case i.Ino == 0:
		err = errors.New("inode number 0")
	case i.Regular() && l.pointer.Pointer(b) != i.mapping:
		err = errors.New("its address_space belongs to another inode")
	case i.Regular() && !i.Writing && (s.Type == "ext4" || s.Type == "ext3"):
		// Only while its lock is held can i_size be less than i_disksize
		// (fs/ext4/ext4.h, i_disksize).
		if size, known := c.sizeOnDisk(i); known && size > i.Size {
			if l.unborn(b) {
				return nil, errNoFile
			}
			err = fmt.Errorf("size %d, but i_disksize %d", i.Size, size)
		}
	}
	if err != nil {
		return nil, &Refusal{Inode: i.Ino, Reason: BadInode, Cause: fmt.Errorf("inode at %v: %w", at, err)}
	}
	return i, nil
}

// otherSuper says that an inode belongs to another file system.
type otherSuper struct{ super addr.Virt }

func (o otherSuper) Error() string { return fmt.Sprintf("inode belongs to superblock at %v", o.super) }

// Mapping returns the address of the inode's page cache, struct address_space.
func (i *Inode) Mapping() addr.Virt { return i.mapping }
