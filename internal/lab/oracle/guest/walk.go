//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/fixture/record"
	"understudy.dev/understudy/internal/lab/oracle/page"
	"understudy.dev/understudy/internal/lab/oracle/script"
)

// walk reports what is on each disk. If one cannot be mounted, that is its result.
func walk(p page.Page, w *page.Walk) error {
	var out bytes.Buffer
	if w.Tools != nil {
		if err := mountTools(*w.Tools); err != nil {
			return err
		}
	}
	for _, m := range w.Mounts {
		end := page.Entry{Disk: m.Disk, End: true}
		if err := walkDisk(json.NewEncoder(&out), m, w); err != nil {
			end.Error = err.Error()
		}
		if err := json.NewEncoder(&out).Encode(end); err != nil {
			return err
		}
	}
	return p.Tell(out.Bytes())
}

func walkDisk(out *json.Encoder, m page.Mount, w *page.Walk) error {
	root, err := mount(m)
	if err != nil {
		return err
	}
	err = walkTree(out, m.Disk, root, w.Dump)
	for _, command := range w.Commands {
		err = errors.Join(err, out.Encode(ask(m.Disk, command, root)))
	}
	return errors.Join(err, unix.Unmount(root, 0))
}

func walkTree(out *json.Encoder, disk, root string, dump []record.Path) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		e := page.Entry{Disk: disk, Path: record.Path(strings.TrimPrefix(path[len(root):], "/"))}
		if err == nil {
			err = describe(&e, path, slices.Contains(dump, e.Path))
		}
		if err != nil {
			e.Error = err.Error()
		}
		return out.Encode(e)
	})
}

// describe fills in what is at a path.
func describe(e *page.Entry, path string, dump bool) error {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st); err != nil {
		return err
	}
	e.Ino, e.Mode, e.UID, e.GID, e.Nlink, e.Size = st.Ino, uint32(st.Mode), st.Uid, st.Gid, st.Nlink, int64(st.Size)
	e.Sec, e.Nsec, e.NoDump = st.Mtime.Sec, st.Mtime.Nsec, st.Attributes&unix.STATX_ATTR_NODUMP != 0
	var err error
	if e.Xattrs, err = xattrs(path); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		target, err := os.Readlink(path)
		e.Target = []byte(target)
		return err
	case unix.S_IFREG:
		return read(e, path, dump)
	}
	return nil
}

func xattrs(path string) ([][]byte, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		return nil, fmt.Errorf("list attributes: %w", err)
	}
	var names []string
	for name := range bytes.SplitSeq(list[:n], []byte{0}) {
		if len(name) > 0 {
			names = append(names, string(name))
		}
	}
	slices.Sort(names)
	var all [][]byte
	for _, name := range names {
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return nil, fmt.Errorf("get attribute %s: %w", name, err)
		}
		all = append(all, []byte(name), bytes.Clone(value[:n]))
	}
	return all, nil
}

// read computes the sum of a file's pages, without its holes.
func read(e *page.Entry, path string, dump bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if dump {
		e.Pages = make(map[int64][]byte)
	}
	sum := script.NewSummer()
	buf := make([]byte, 32*script.PageSize)
	zeros := make([]byte, script.PageSize)
	for off := int64(0); off < e.Size; off += int64(len(buf)) {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // no more data
		}
		if err != nil {
			return err
		}
		off = max(off, data/script.PageSize*script.PageSize)
		n, err := f.ReadAt(buf[:min(int64(len(buf)), e.Size-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		for i := 0; i < n; i += script.PageSize {
			piece := buf[i:min(n, i+script.PageSize)]
			sum.Page(off/script.PageSize+int64(i/script.PageSize), piece)
			if dump && !bytes.Equal(piece, zeros[:len(piece)]) {
				e.Pages[off/script.PageSize+int64(i/script.PageSize)] = bytes.Clone(piece)
			}
		}
	}
	s := sum.Sum(e.Size)
	e.Sum = s[:]
	return nil
}
