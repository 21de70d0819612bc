// Package sparse copies disk images that are mostly holes.
package sparse

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Copy copies the data of a file, without its holes, to the same places of another file,
// which must have holes where the first does. It moves the file offsets of both.
func Copy(to, from *os.File) error {
	for at := int64(0); ; {
		start, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err == nil {
			at, err = unix.Seek(int(from.Fd()), start, unix.SEEK_HOLE)
		}
		if err == nil {
			err = copyAt(to, from, start, at-start)
		}
		if err != nil {
			return fmt.Errorf("copy %s: %w", from.Name(), err)
		}
	}
}

// copyAt lets the kernel copy, where it can (copy_file_range(2)).
func copyAt(to, from *os.File, at, n int64) error {
	for _, f := range []*os.File{to, from} {
		if _, err := f.Seek(at, io.SeekStart); err != nil {
			return err
		}
	}
	_, err := io.CopyN(to, from, n)
	return err
}
