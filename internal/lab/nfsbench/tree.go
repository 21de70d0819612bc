package nfsbench

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/initramfs"
)

// Places of a packed tree in the client's guest.
const (
	tarPath  = "/tree.tar"
	sumsPath = "/tree.sums"
	fioPath  = "/usr/bin/fio"
)

// Tree is a source tree, packed for guests that unpack it.
type Tree struct {
	Files int
	Bytes int64
	dir   string // holds the archive and the sums
}

// PackTree makes an archive of all regular files below top, with a list of their
// SHA-256 as sha256sum(1) reads it. Close removes both.
func PackTree(top string) (t *Tree, err error) {
	t = &Tree{}
	if t.dir, err = os.MkdirTemp("", "understudy-tree-"); err != nil {
		return nil, err
	}
	if err := t.pack(top); err != nil {
		return nil, errors.Join(fmt.Errorf("pack %s: %w", top, err), t.Close())
	}
	return t, nil
}

func (t *Tree) archive() string { return filepath.Join(t.dir, "tar") }
func (t *Tree) sums() string    { return filepath.Join(t.dir, "sums") }

// Close removes the archive.
func (t *Tree) Close() error { return os.RemoveAll(t.dir) }

func (t *Tree) pack(top string) error {
	f, err := os.Create(t.archive())
	if err != nil {
		return err
	}
	defer f.Close()
	out := tar.NewWriter(f)
	var sums strings.Builder
	err = filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(top, path)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(content), name)
		t.Files, t.Bytes = t.Files+1, t.Bytes+int64(len(content))
		if err := out.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Format: tar.FormatPAX}); err != nil {
			return err
		}
		_, err = out.Write(content)
		return err
	})
	if err == nil && t.Files == 0 {
		err = errors.New("no file is in it")
	}
	return errors.Join(err, out.Close(), f.Close(), os.WriteFile(t.sums(), []byte(sums.String()), 0o644))
}

// Content returns what the client's guest needs for crashes: the tree, and fio(1) with
// its libraries, which the NFS programs share.
func (t *Tree) Content() ([]initramfs.File, error) {
	cache, err := dirs.Cache()
	if err != nil {
		return nil, err
	}
	files, err := initramfs.Programs(filepath.Join(cache, "nfs"), fioPath)
	if err != nil {
		return nil, err
	}
	return append(files, initramfs.Copy(tarPath, t.archive(), 0o644), initramfs.Copy(sumsPath, t.sums(), 0o644)), nil
}
