package extract

import (
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// place is a directory that files are put into. A name in it is a single one, which
// the kernel looks up without a walk from the top, as os.Root would have to.
type place struct {
	dir      *os.File
	uid, gid int64 // of new files here; -1 if unknown
}

func openPlace(root *os.Root, dir string) (place, error) {
	f, err := root.Open(dir)
	if err != nil {
		return place{}, err
	}
	p := place{f, -1, -1}
	// It depends on the file system, its mount, and the directory.
	fd, err := unix.Openat(int(f.Fd()), ".", unix.O_WRONLY|unix.O_TMPFILE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return p, nil // not every file system can do that
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil {
		p.uid, p.gid = int64(st.Uid), int64(st.Gid)
	}
	return p, os.NewSyscallError("close", unix.Close(fd))
}

// owns reports whether a new file here has this owner to begin with.
func (p place) owns(uid, gid uint32) bool { return int64(uid) == p.uid && int64(gid) == p.gid }

// create makes a file that was not there; O_EXCL does not follow links.
func (p place) create(name string) (*os.File, error) {
	fd, err := unix.Openat(int(p.dir.Fd()), name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "openat", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (p place) chtimes(name string, atime, mtime time.Time) error {
	times := make([]unix.Timespec, 2)
	for i, t := range []time.Time{atime, mtime} {
		var err error
		if times[i], err = unix.TimeToTimespec(t); err != nil {
			return err
		}
	}
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(int(p.dir.Fd()), name, times, unix.AT_SYMLINK_NOFOLLOW))
}

func (p place) close() error { return p.dir.Close() }
