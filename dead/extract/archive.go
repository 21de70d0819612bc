package extract

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"

	"understudy.dev/understudy/dead/inventory"
)

// Archive is a tar archive, compressed with zstd, written as a stream.
type Archive struct {
	path string   // final name; empty for a stream of the caller's
	file *os.File // under a temporary name
	out  *bufio.Writer
	zstd *zstd.Encoder
	tar  *tar.Writer
	done bool
}

// maxZeros bounds the holes of one file in an archive, in bytes: a tar archive
// stores them as zeros.
const maxZeros = 64 << 30

// NewArchive begins an archive. It has its name only after Finish.
func NewArchive(name string) (*Archive, error) {
	if _, err := os.Lstat(name); err == nil {
		return nil, fmt.Errorf("create archive %s: %w: choose another name, or remove it", name, fs.ErrExist)
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".partial-*")
	if err != nil {
		return nil, fmt.Errorf("create archive: %w", err)
	}
	a, err := StreamArchive(f)
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	a.path, a.file = name, f
	return a, nil
}

// StreamArchive begins an archive that goes to a stream.
func StreamArchive(w io.Writer) (*Archive, error) {
	a := &Archive{out: bufio.NewWriterSize(w, 1<<20)}
	var err error
	if a.zstd, err = zstd.NewWriter(a.out, zstd.WithEncoderLevel(zstd.SpeedFastest)); err != nil {
		return nil, fmt.Errorf("create archive: %w", err)
	}
	a.tar = tar.NewWriter(a.zstd)
	return a, nil
}

// Parallel implements Sink.
func (a *Archive) Parallel() int { return 1 }

// Put implements Sink.
func (a *Archive) Put(name string, f *inventory.File, body Body) error {
	if f.Size-f.UnsavedBytes()-f.CleanBytes() > maxZeros {
		return fmt.Errorf("%w: archive %s: its holes are larger than %d bytes: extract it to a directory", ErrSkip, name, int64(maxZeros))
	}
	err := a.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: f.Size, Mode: int64(f.Mode & 0o7777),
		Uid: int(f.UID), Gid: int(f.GID), ModTime: f.Mtime, Format: tar.FormatPAX,
	})
	if err != nil {
		return advise("archive", name, err)
	}
	at := int64(0)
	err = body(func(off int64, b []byte) error {
		if err := a.zeros(off - at); err != nil {
			return err
		}
		at = off + int64(len(b))
		_, err := a.tar.Write(b)
		return err
	})
	if err == nil {
		err = a.zeros(f.Size - at)
	}
	if err != nil {
		return advise("archive", name, err)
	}
	return nil
}

// Link implements Sink.
func (a *Archive) Link(name, to string) error {
	err := a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to, Format: tar.FormatPAX})
	if err != nil {
		return advise("archive", name, err)
	}
	return nil
}

func (a *Archive) zeros(n int64) error {
	for n > 0 {
		b := zeroPage[:min(n, int64(len(zeroPage)))]
		if _, err := a.tar.Write(b); err != nil {
			return err
		}
		n -= int64(len(b))
	}
	return nil
}

// Finish implements Sink.
func (a *Archive) Finish(manifest []byte) error {
	err := a.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: inventory.Manifest, Size: int64(len(manifest)), Mode: 0o600, ModTime: time.Now(),
	})
	if err == nil {
		_, err = a.tar.Write(manifest)
	}
	if err = errors.Join(err, a.tar.Close(), a.zstd.Close(), a.out.Flush()); err == nil && a.file != nil {
		err = a.publish()
	}
	if err != nil {
		return errors.Join(advise("finish", "archive", err), a.Abort())
	}
	a.done = true
	return nil
}

func (a *Archive) publish() error {
	if err := errors.Join(a.file.Sync(), a.file.Close()); err != nil {
		return err
	}
	// Unlike a rename, a link does not replace a file that was created meanwhile.
	if err := os.Link(a.file.Name(), a.path); err != nil {
		return err
	}
	if err := os.Remove(a.file.Name()); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(a.path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// Abort implements Sink.
func (a *Archive) Abort() error {
	if a.done || a.file == nil {
		return nil
	}
	a.done = true
	a.file.Close() // may be closed already
	return os.Remove(a.file.Name())
}
