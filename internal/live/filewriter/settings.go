package filewriter

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// lockingFlags are the inode flags that forbid writing: FS_XFLAG_IMMUTABLE and FS_XFLAG_APPEND (include/uapi/linux/fs.h).
const lockingFlags = 0x8 | 0x10

// Further flags of that header. XFS takes the hints of a regular file's extent sizes only while the file has no extents
// (fs/xfs/xfs_ioctl.c, xfs_ioctl_setattr_check_extsize).
const (
	projectInherit = 0x200           // FS_XFLAG_PROJINHERIT
	extentHints    = 0x800 | 0x10000 // FS_XFLAG_EXTSIZE, FS_XFLAG_COWEXTSIZE
)

// dirSyncFlag is FS_DIRSYNC_FL. Like FS_NOCOW_FL, which btrfs takes for a regular file only while it is empty, only FS_IOC_SETFLAGS sets it. That call
// also changes the attribute btrfs.compression, which FS_IOC_FSSETXATTR leaves alone (fs/btrfs/ioctl.c, btrfs_fileattr_set).
const dirSyncFlag = 0x10000

// settings is a struct fsxattr.
type settings struct {
	flags                                 uint32 // FS_XFLAG_*
	extentSize, extents, project, cowSize uint32 // sizes in bytes
	_                                     [8]byte
}

// FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR.
const (
	getSettings = 0x801c581f
	setSettings = 0x401c5820
)

func (s *settings) ioctl(fd int, request uintptr) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(s)))
	if errno != 0 {
		return errno
	}
	return nil
}

func readSettings(fd int) (s settings, err error) {
	if err = s.ioctl(fd, getSettings); err != nil {
		err = fmt.Errorf("get inode flags: %w", err)
	}
	return s, err
}

// setTo changes the settings of an inode that has now.
func (s settings) setTo(fd int, now settings) error {
	if s == now {
		return nil
	}
	if err := s.ioctl(fd, setSettings); err != nil {
		return fmt.Errorf("set inode flags %#x, project %d, extent sizes %d and %d: %w", s.flags, s.project, s.extentSize, s.cowSize, err)
	}
	return nil
}

// unlocked returns settings that let programs write.
func (s settings) unlocked() settings {
	s.flags &^= lockingFlags
	return s
}

// withHints returns settings with the hints of extent sizes that an inode had.
func (s settings) withHints(w wire.Settings) settings {
	if mask := w.Known & extentHints; mask != 0 {
		s.flags = s.flags&^mask | w.Flags&mask
		s.extentSize, s.cowSize = w.ExtentSize, w.CowExtentSize
	}
	return s
}

// with returns settings with those that an inode had, but for the hints of a regular file.
func (s settings) with(w wire.Settings, regular bool) settings {
	if !regular {
		s = s.withHints(w)
	}
	mask := (w.Known | lockingFlags) &^ extentHints
	s.flags = s.flags&^mask | w.Flags&mask
	if w.Known&projectInherit != 0 {
		s.project = w.Project
	}
	return s
}

// setEmpty gives an empty file, or a directory, the settings that a file with content does not take. Without them it gets its content all the
// same.
func (l *unlogged) setEmpty(fd int) error {
	w := l.attr.Settings
	switch {
	case w.BtrfsKnown != 0:
		return l.setBtrfs(fd)
	case w.Known&extentHints == 0 || l.kind() != unix.S_IFREG:
		return nil
	}
	now, err := readSettings(fd)
	if err != nil {
		return err
	}
	return now.withHints(w).setTo(fd, now)
}

// setBtrfs sets the flags that only btrfs has.
func (l *unlogged) setBtrfs(fd int) error {
	now, err := unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	if err != nil {
		return fmt.Errorf("get inode flags: %w", err)
	}
	known, want := int(l.attr.Settings.BtrfsKnown), int(l.attr.Settings.Btrfs)
	if l.kind() == unix.S_IFREG {
		known &^= dirSyncFlag
	}
	if want = now&^known | want&known; want == now {
		return nil
	}
	if err := unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, want); err != nil {
		return fmt.Errorf("set inode flags %#x: %w", want, err)
	}
	return nil
}

// wants returns the settings that an open file or directory has, and those that it is to have in the end.
func (l *unlogged) wants(fd int) (now, want settings, err error) {
	now, err = readSettings(fd)
	return now, now.with(l.attr.Settings, l.kind() == unix.S_IFREG), err
}

// readable opens for reading what an O_PATH descriptor, which takes no ioctl(2), has open.
func readable(fd int) (int, error) {
	return unix.Open(procPath(fd), unix.O_RDONLY|unix.O_NOATIME|unix.O_CLOEXEC, 0)
}

// lock gives files and directories the settings that they had, some of which forbid to write to files, and to change the
// names in directories.
func (r *restorer) lock() {
	for _, l := range r.all {
		if !l.late {
			continue
		}
		if err := r.lockOne(l); err != nil {
			r.fail(l, err)
		}
	}
}

func (r *restorer) lockOne(l *unlogged) error {
	at, err := r.reopen(l)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	fd, err := readable(at)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	now, want, err := l.wants(fd)
	if err != nil {
		return err
	}
	return want.setTo(fd, now)
}

// join gives a file the project of a directory whose files must all be of its project (fs/xfs/xfs_inode.c, xfs_link and xfs_rename), so
// that it can have a name there; lock gives it its own.
func (l *unlogged) join(fd, dir int) error {
	if l.kind() != unix.S_IFREG || l.attr.Settings.Known&projectInherit == 0 {
		return unix.EXDEV
	}
	there, err := readSettings(dir)
	if err != nil {
		return err
	}
	own, err := readable(fd)
	if err != nil {
		return err
	}
	defer unix.Close(own)
	now, err := readSettings(own)
	if err != nil {
		return err
	}
	want := now
	want.project, l.late = there.project, true
	return want.setTo(own, now)
}

// joining does what gives a file a name in a directory; fd is the file's.
func (l *unlogged) joining(fd, dir int, do func() error) error {
	err := do()
	if errors.Is(err, unix.EXDEV) && l.join(fd, dir) == nil {
		err = do()
	}
	return err
}

// BTRFS_IOC_SUBVOL_CREATE, and the name in its struct btrfs_ioctl_vol_args (include/uapi/linux/btrfs.h).
const (
	createSubvolume = 0x5000940e
	maxSubvolume    = 4087
)

// firstInode is BTRFS_FIRST_FREE_OBJECTID, the number of the top directory of a subvolume (include/uapi/linux/btrfs_tree.h).
const firstInode = 256

// isSubvolume reports whether a missing directory was a subvolume of btrfs.
func (r *restorer) isSubvolume(l *unlogged) bool {
	return r.kind == "btrfs" && l.file.Inode == firstInode && l.attr.Root != topSubvolume
}

// makeSubvolume makes a subvolume with a name in an open directory.
func makeSubvolume(in int, name string) error {
	args := struct {
		_    int64
		name [maxSubvolume + 1]byte
	}{}
	if len(name) > maxSubvolume {
		return unix.ENAMETOOLONG
	}
	copy(args.name[:], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(in), createSubvolume, uintptr(unsafe.Pointer(&args))); errno != 0 {
		return fmt.Errorf("make subvolume: %w", errno)
	}
	return nil
}
