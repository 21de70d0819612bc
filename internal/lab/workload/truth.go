package workload

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
)

// Truth is what one file holds, as hashes.
type Truth struct {
	Path   string // relative to the tree, with slashes
	Size   int64  // bytes
	Mode   fs.FileMode
	SHA256 [sha256.Size]byte
	Pages  []uint32 // CRC-32C of each PageSize bytes; the last one may be of fewer
	Synced bool     // durable before the crash, so that no crash may change it; Digest does not know
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// summer works out the hashes of one file after the other.
type summer struct {
	sha   hash.Hash
	pages []uint32
	size  int64
}

func newSummer() *summer { return &summer{sha: sha256.New()} }

// add takes in the next part of a file; every part but the last is a multiple of PageSize long.
func (s *summer) add(part []byte) {
	s.sha.Write(part)
	s.size += int64(len(part))
	for len(part) > 0 {
		n := min(PageSize, len(part))
		s.pages = append(s.pages, crc32.Checksum(part[:n], castagnoli))
		part = part[n:]
	}
}

// finish puts the size and the hashes into t and starts afresh.
func (s *summer) finish(t *Truth) {
	t.Size, t.Pages = s.size, s.pages
	s.sha.Sum(t.SHA256[:0])
	s.sha.Reset()
	s.size, s.pages = 0, nil
}

// Digest reads the tree in dir and yields a record of each file, in lexical order of the paths. Directories have no
// record, and what is neither file nor directory has one without content. A file that cannot be read is yielded with
// its error and the reading goes on; a directory that cannot be read likewise.
func Digest(dir string) iter.Seq2[Truth, error] {
	return func(yield func(Truth, error) bool) {
		sum, buf := newSummer(), make([]byte, 256<<10)
		// The function below never returns an error but fs.SkipAll, so neither does WalkDir.
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			t := Truth{Path: relative(dir, path)}
			if err == nil && d.IsDir() {
				return nil
			}
			if err == nil {
				err = sum.read(&t, path, d, buf)
			}
			if err != nil {
				err = fmt.Errorf("digest %s: %w", t.Path, err)
			}
			if !yield(t, err) {
				return fs.SkipAll
			}
			return nil
		})
	}
}

// relative is path as a record names it.
func relative(dir, path string) string {
	rel, err := filepath.Rel(dir, path)
	if err != nil {
		return path
	}
	return filepath.ToSlash(rel)
}

// read fills in t from the directory entry and the content at path.
func (s *summer) read(t *Truth, path string, d fs.DirEntry, buf []byte) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	t.Mode = info.Mode()
	if !t.Mode.IsRegular() {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		n, err := io.ReadFull(f, buf)
		s.add(buf[:n])
		switch {
		case err == nil:
			continue
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			s.finish(t)
			return nil
		}
		s.finish(&Truth{}) // forget the half
		return err
	}
}
