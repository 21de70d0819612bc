//go:build !linux

package extract

import (
	"io/fs"
	"os"
	"time"
)

// outputDir is a directory that files are put into.
type outputDir struct{ root *os.Root }

func openOutputDir(root *os.Root, dir string) (outputDir, error) {
	r, err := root.OpenRoot(dir)
	return outputDir{r}, err
}

// owns reports whether a new file here is known to have this owner from the start.
func (p outputDir) owns(uid, gid uint32) bool { return false }

// allows reports whether a new file here is known to get these permissions if it is
// created with them.
func (p outputDir) allows(perm uint16) bool { return false }

// create makes a file that was not there.
func (p outputDir) create(name string, perm uint16) (output, error) {
	f, err := p.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fs.FileMode(perm))
	return output{f}, err
}

func (p outputDir) chtimes(name string, atime, mtime time.Time) error {
	return p.root.Chtimes(name, atime, mtime)
}

func (p outputDir) close() error { return p.root.Close() }

// output is a file to be written.
type output struct{ f *os.File }

func (o output) writeAt(b []byte, off int64) error {
	_, err := o.f.WriteAt(b, off)
	return err
}

func (o output) truncate(size int64) error { return o.f.Truncate(size) }

func (o output) chown(uid, gid uint32) error { return o.f.Chown(int(uid), int(gid)) }

// chmod sets permissions and the bits above them, as in an inode.
func (o output) chmod(mode uint16) error {
	m := fs.FileMode(mode & 0o777)
	for _, special := range []struct {
		bit  uint16
		mode fs.FileMode
	}{{0o4000, fs.ModeSetuid}, {0o2000, fs.ModeSetgid}, {0o1000, fs.ModeSticky}} {
		if mode&special.bit != 0 {
			m |= special.mode
		}
	}
	return o.f.Chmod(m)
}

func (o output) close() error { return o.f.Close() }
