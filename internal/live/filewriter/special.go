package filewriter

import (
	"fmt"
	"path"

	"golang.org/x/sys/unix"
)

// special gives what is neither a regular file nor a directory the owner, the permissions and the times
// that it had. If it is missing, it is created: that is possible only for a symbolic link whose target is
// in memory.
func (r *restorer) special(l *unlogged) error {
	if l.missing {
		if err := r.makeLink(l); err != nil {
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
		if err := unix.Fchmodat(unix.AT_FDCWD, at, l.attr.Mode&0o7777, 0); err != nil {
			return fmt.Errorf("set permissions: %w", err)
		}
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, at, timesOf(l.file), 0); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}

// procPath is a path to what a descriptor has open, even if that is a symbolic link itself (proc_pid_fd(5)).
func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// makeLink makes a symbolic link under a temporary name, or takes over one that has its name and its
// target: an interrupted attempt made it, or it is equal anyway.
func (r *restorer) makeLink(l *unlogged) error {
	if l.kind() != unix.S_IFLNK || len(l.attr.Target) == 0 || len(l.attr.Paths) == 0 {
		return fmt.Errorf("%w, and only files, directories and some symbolic links can be made again", errMissing)
	}
	dir, err := r.temporary(l)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	name := path.Base(l.path())
	if r.isLink(dir, name, l.attr.Target) {
		l.temp = ""
		return l.isMade(dir, name)
	}
	if err := unix.Symlinkat(string(l.attr.Target), dir, l.temp); err != nil {
		return fmt.Errorf("make symbolic link: %w", err)
	}
	return l.isMade(dir, l.temp)
}

// isLink reports whether a name is that of a symbolic link to target, which has no other name and is
// not one of the plan's inodes on the disk.
func (r *restorer) isLink(dir int, name string, target []byte) bool {
	b := make([]byte, len(target)+1)
	var st unix.Stat_t
	n, err := unix.Readlinkat(dir, name, b)
	if err == nil {
		err = unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	return err == nil && string(b[:n]) == string(target) && st.Nlink == 1 && r.known[idOf(&st)] == nil
}
