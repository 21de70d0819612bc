package filewriter

import (
	"fmt"
	"path"

	"golang.org/x/sys/unix"
)

// special gives what is neither a regular file nor a directory the owner, the permissions, the extended attributes and
// the times that it had. If it is missing, it is created: that is not possible for a symbolic link whose target is
// not in memory.
func (r *restorer) special(l *unlogged) error {
	if l.missing {
		if err := r.makeSpecial(l); err != nil {
			return err
		}
	}
	fd, err := r.reopen(l)
	if err != nil {
		return fmt.Errorf("open by handle: %w", err)
	}
	defer unix.Close(fd)
	at := procPath(fd) // the calls below take no O_PATH descriptor
	if err := unix.Fchownat(unix.AT_FDCWD, at, int(l.attr.UID), int(l.attr.GID), 0); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if l.kind() != unix.S_IFLNK { // a symbolic link has no permissions
		if err := unix.Fchmodat(unix.AT_FDCWD, at, l.mode(), 0); err != nil {
			return fmt.Errorf("set permissions: %w", err)
		}
	}
	l.setXattrs(at)
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, at, timesOf(l.file), 0); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// procPath is a path to what a descriptor has open, even if that is a symbolic link itself (proc_pid_fd(5)).
func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// makeSpecial makes a symbolic link, a device file, a FIFO or a socket under a temporary name, or takes over one that has its name
// and is the same: an interrupted attempt made it, or it is equal anyway.
func (r *restorer) makeSpecial(l *unlogged) error {
	if len(l.attr.Paths) == 0 {
		return fmt.Errorf("%w, and it has no name in memory", errMissing)
	}
	if l.kind() == unix.S_IFLNK && len(l.attr.Target) == 0 {
		return fmt.Errorf("%w, and what this symbolic link pointed to is not in memory", errMissing)
	}
	dir, err := r.temporary(l)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	name := path.Base(l.path())
	if r.isSpecial(l, dir, name) {
		l.temp = ""
		return l.isMade(dir, name)
	}
	if l.kind() == unix.S_IFLNK {
		err = unix.Symlinkat(string(l.attr.Target), dir, l.temp)
	} else {
		if err = unix.Mknodat(dir, l.temp, l.kind()|0o600, int(l.attr.Device)); err == nil {
			err = l.dropInherited(procPath(dir) + "/" + l.temp)
		}
	}
	if err != nil {
		return fmt.Errorf("make it again: %w", err)
	}
	return l.isMade(dir, l.temp)
}

// isSpecial reports whether a name is that of the same symbolic link, device file, FIFO or socket, which has no other name and is
// not one of the plan's inodes on the disk.
func (r *restorer) isSpecial(l *unlogged, dir int, name string) bool {
	var st unix.Stat_t
	err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil || l.later(&st) || st.Mode&unix.S_IFMT != l.kind() || st.Nlink != 1 || r.known[idOf(&st)] != nil {
		return false
	}
	switch l.kind() {
	case unix.S_IFLNK:
		b := make([]byte, len(l.attr.Target)+1)
		n, err := unix.Readlinkat(dir, name, b)
		return err == nil && string(b[:n]) == string(l.attr.Target)
	case unix.S_IFBLK, unix.S_IFCHR:
		return st.Rdev == l.attr.Device
	}
	return true
}
