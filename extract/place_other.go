//go:build !linux

package extract

import (
	"os"
	"time"
)

// place is a directory that files are put into.
type place struct{ root *os.Root }

func openPlace(root *os.Root, dir string) (place, error) {
	r, err := root.OpenRoot(dir)
	return place{r}, err
}

// owns reports whether a new file here is known to have this owner to begin with.
func (p place) owns(uid, gid uint32) bool { return false }

// create makes a file that was not there.
func (p place) create(name string) (*os.File, error) {
	return p.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
}

func (p place) chtimes(name string, atime, mtime time.Time) error {
	return p.root.Chtimes(name, atime, mtime)
}

func (p place) close() error { return p.root.Close() }
