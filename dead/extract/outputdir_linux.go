package extract

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// outputDir is a directory that files are put into. A name in it is a single component, which
// the kernel looks up directly; os.Root would have to walk from the top.
type outputDir struct {
	dir      *os.File
	fd       int
	known    bool   // whether the following members are known
	uid, gid uint32 // of new files here
	allowed  uint32 // permissions that new files here can get
}

// probeName is the name of a file that is removed before any other is created.
const probeName = ".understudy-probe"

func openOutputDir(root *os.Root, dir string) (outputDir, error) {
	f, err := root.Open(dir)
	if err != nil {
		return outputDir{}, err
	}
	p := outputDir{dir: f, fd: int(f.Fd())}
	p.probe()
	return p, nil
}

// probe finds out what new files here are like, which depends on the file system, its
// mount, the directory, its default ACL and the umask.
func (p *outputDir) probe() {
	out, err := p.create(probeName, 0o777)
	if err != nil {
		return // the error comes again where it matters
	}
	var st unix.Stat_t
	err = unix.Fstat(int(out), &st)
	err = errors.Join(err, out.close(), unix.Unlinkat(p.fd, probeName, 0))
	p.known, p.uid, p.gid, p.allowed = err == nil, st.Uid, st.Gid, st.Mode&0o777
}

// owns reports whether a new file here is known to have this owner from the start.
func (p outputDir) owns(uid, gid uint32) bool { return p.known && uid == p.uid && gid == p.gid }

// allows reports whether a new file here is known to get these permissions if it is
// created with them.
func (p outputDir) allows(perm uint16) bool { return p.known && uint32(perm)&^p.allowed == 0 }

// create makes a file that was not there; O_EXCL does not follow links.
func (p outputDir) create(name string, perm uint16) (output, error) {
	var fd int
	err := again(func() (err error) {
		fd, err = unix.Openat(p.fd, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, uint32(perm))
		return err
	})
	if err != nil {
		return -1, &fs.PathError{Op: "openat", Path: name, Err: err}
	}
	return output(fd), nil
}

func (p outputDir) chtimes(name string, atime, mtime time.Time) error {
	times := make([]unix.Timespec, 2)
	for i, t := range []time.Time{atime, mtime} {
		var err error
		if times[i], err = unix.TimeToTimespec(t); err != nil {
			return err
		}
	}
	return os.NewSyscallError("utimensat", unix.UtimesNanoAt(p.fd, name, times, unix.AT_SYMLINK_NOFOLLOW))
}

func (p outputDir) close() error { return p.dir.Close() }

// output is the descriptor of a file to be written. An os.File costs as much as half
// of the system calls for a small file.
type output int

// writeAt writes all of b.
func (o output) writeAt(b []byte, off int64) error {
	for len(b) > 0 {
		n := 0
		err := again(func() (err error) { n, err = unix.Pwrite(int(o), b, off); return err })
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return os.NewSyscallError("pwrite", err)
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

func (o output) truncate(size int64) error {
	return os.NewSyscallError("ftruncate", again(func() error { return unix.Ftruncate(int(o), size) }))
}

func (o output) chown(uid, gid uint32) error {
	return os.NewSyscallError("fchown", again(func() error { return unix.Fchown(int(o), int(uid), int(gid)) }))
}

// chmod sets permissions and the bits above them, as in an inode.
func (o output) chmod(mode uint16) error {
	return os.NewSyscallError("fchmod", again(func() error { return unix.Fchmod(int(o), uint32(mode)) }))
}

func (o output) close() error { return os.NewSyscallError("close", unix.Close(int(o))) }

// again repeats a call that a signal interrupted.
func again(do func() error) error {
	for {
		if err := do(); err != unix.EINTR {
			return err
		}
	}
}
