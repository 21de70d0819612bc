package pagecache

import "understudy.dev/understudy/dead/kernel"

// Settings are what chattr(1) and xfs_io(8) set of a regular file or a directory.
type Settings struct {
	Flags         uint32 // FS_XFLAG_* (include/uapi/linux/fs.h)
	Known         uint32 // those of which memory tells whether they are set
	Btrfs         uint32 // FS_NOCOW_FL and FS_DIRSYNC_FL, which have no such flag
	BtrfsKnown    uint32 // likewise
	Project       uint32 // of XFS: known with FS_XFLAG_PROJINHERIT
	ExtentSize    uint32 // hint, in bytes: known with FS_XFLAG_EXTSIZE
	CowExtentSize uint32 // likewise
}

// xfsSettings is where the settings are in an xfs_inode: in xfs_icdinode before 5.13.
type xfsSettings struct{ flags, flags2, project, extentSize, cowExtentSize kernel.Field }

func newXFSSettings(l *kernel.Layout) xfsSettings {
	either := func(now, before string, size int) kernel.Field {
		if l.Has(now) {
			return l.Field(now, size)
		}
		return l.Optional(before, size)
	}
	return xfsSettings{
		flags: either("i_diflags", "i_d.di_flags", 2), flags2: either("i_diflags2", "i_d.di_flags2", 8), project: either("i_projid", "i_d.di_projid", 4),
		extentSize: either("i_extsize", "i_d.di_extsize", 4), cowExtentSize: either("i_cowextsize", "i_d.di_cowextsize", 4),
	}
}

// The flags in an XFS inode (fs/xfs/libxfs/xfs_format.h): XFS_DIFLAG_IMMUTABLE to XFS_DIFLAG_FILESTREAM have the values of their FS_XFLAG_*.
// XFS_DIFLAG_RTINHERIT is left out: nothing is written to an XFS with a realtime section.
const (
	xfsFlags       = 0x7ef8
	xfsDAX         = 1 << 0 // XFS_DIFLAG2_DAX
	xfsCowExtSize  = 1 << 2 // XFS_DIFLAG2_COWEXTSIZE
	flagDAX        = 0x8000
	flagCowExtSize = 0x10000
	hintFlags      = 0x800 | 0x1000 // FS_XFLAG_EXTSIZE, FS_XFLAG_EXTSZINHERIT
)

// Settings returns the settings of a file or a directory. None are known if the kernel's types do not tell where they are.
func (x *XFS) Settings(i *Inode) (Settings, error) {
	l := &x.layout.settings
	b, err := x.own(i)
	if err != nil || !l.flags.Present() || !l.flags2.Present() || !l.project.Present() || !l.extentSize.Present() || !l.cowExtentSize.Present() {
		return Settings{}, err
	}
	s := Settings{Flags: uint32(l.flags.Uint(b)) & xfsFlags, Known: xfsFlags | flagDAX | flagCowExtSize, Project: uint32(l.project.Uint(b))}
	more := l.flags2.Uint(b)
	if more&xfsDAX != 0 {
		s.Flags |= flagDAX
	}
	if s.Flags&hintFlags != 0 {
		s.ExtentSize = uint32(l.extentSize.Uint(b) << x.blockLog)
	}
	if more&xfsCowExtSize != 0 {
		s.Flags |= flagCowExtSize
		s.CowExtentSize = uint32(l.cowExtentSize.Uint(b) << x.blockLog)
	}
	return s, nil
}

// btrfsFlags are flags of a btrfs inode (include/uapi/linux/btrfs_tree.h, BTRFS_INODE_SYNC, IMMUTABLE, APPEND, NODUMP and NOATIME), and the FS_XFLAG_*
// that they are for programs.
var btrfsFlags = map[uint64]uint32{1 << 5: 0x20, 1 << 6: 0x8, 1 << 7: 0x10, 1 << 8: 0x80, 1 << 9: 0x40}

// The same for flags that are only FS_*_FL: BTRFS_INODE_NODATACOW and BTRFS_INODE_DIRSYNC.
var btrfsOwnFlags = map[uint64]uint32{btrfsNoCOW: 0x800000, 1 << 10: 0x10000}

// Settings returns the settings of a file or a directory. None are known if the kernel's types do not tell where they are. Which
// compression it has is an extended attribute.
func (f *Btrfs) Settings(i *Inode) (s Settings, err error) {
	b, err := f.own(i)
	if err != nil || !f.layout.inodeFlags.Present() {
		return s, err
	}
	flags := f.layout.inodeFlags.Uint(b)
	convert := func(table map[uint64]uint32, set, known *uint32) {
		for bit, flag := range table {
			*known |= flag
			if flags&bit != 0 {
				*set |= flag
			}
		}
	}
	convert(btrfsFlags, &s.Flags, &s.Known)
	convert(btrfsOwnFlags, &s.Btrfs, &s.BtrfsKnown)
	return s, nil
}
