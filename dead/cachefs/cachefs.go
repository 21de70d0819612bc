//go:build linux

// Package cachefs shows the files of a dead kernel's memory as a read-only file
// system, and promises that a byte that memory does not hold reads as an I/O
// error, never as a zero.
//
// # Caveats
//
// A page with any missing byte is missing as a whole: the kernel reads pages.
// Directories are made up from the paths of the files; memory is not searched for
// their other entries.
package cachefs

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"understudy.dev/understudy/dead/inventory"
)

// File is a file to be shown.
type File struct {
	*inventory.File
	Name  string   // path from the top of the mount, by an inventory.Namer
	Links []string // its other names, as paths of the same form
	// Fill reads what memory does not hold, or returns an error. It may be nil.
	Fill func(dst []byte, off int64) error
}

// Server is a mounted file system.
type Server struct{ s *fuse.Server }

// Mount shows files at a directory until Unmount. Only the caller's user has
// access, unless allowOther is set.
func Mount(dir string, m *inventory.Image, files []File, allowOther bool) (*Server, error) {
	forever := time.Hour
	root := &directory{}
	s, err := fs.Mount(dir, root, &fs.Options{
		AttrTimeout: &forever, EntryTimeout: &forever, NegativeTimeout: &forever,
		OnAdd: func(ctx context.Context) { root.fill(ctx, m, files) },
		MountOptions: fuse.MountOptions{
			FsName: "understudy", Name: "understudy", AllowOther: allowOther,
			// nodev and nosuid: modes and contents are a dead machine's.
			Options: []string{"ro", "nodev", "nosuid", "noexec", "default_permissions"},
			// Without fusermount, root mounts by itself.
			DirectMount: true, DirectMountFlags: syscall.MS_RDONLY | syscall.MS_NODEV | syscall.MS_NOSUID | syscall.MS_NOEXEC,
			MaxReadAhead: 128 << 10,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	return &Server{s}, nil
}

// Wait returns when the file system is no longer mounted.
func (s *Server) Wait() { s.s.Wait() }

// Unmount ends the mount. It fails while the mount is in use.
func (s *Server) Unmount() error { return s.s.Unmount() }

// directory is made up from the paths of files.
type directory struct {
	fs.Inode
	newest time.Time
}

func (d *directory) fill(ctx context.Context, m *inventory.Image, files []File) {
	// A mount may show several file systems, whose inode numbers may be the same.
	next := uint64(rand.Uint32()) + 2
	number := func() uint64 { next++; return next }
	for i := range files {
		f := &files[i]
		node := &file{image: m, f: f, extents: f.Extents()}
		inode := d.NewPersistentInode(ctx, node, fs.StableAttr{Mode: fuse.S_IFREG, Ino: number()})
		for _, full := range append([]string{f.Name}, f.Links...) {
			dir, name := path.Split(full)
			at := &d.Inode
			for _, part := range strings.Split(strings.Trim(dir, "/"), "/") {
				child := at.GetChild(part)
				if child == nil {
					child = at.NewPersistentInode(ctx, &directory{}, fs.StableAttr{Mode: fuse.S_IFDIR, Ino: number()})
					at.AddChild(part, child, true)
				}
				at = child
				touch(at, f.Mtime)
			}
			at.AddChild(name, inode, true)
		}
	}
}

func touch(at *fs.Inode, when time.Time) {
	if dir, ok := at.Operations().(*directory); ok && dir.newest.Before(when) {
		dir.newest = when
	}
}

// Getattr implements fs.NodeGetattrer.
func (d *directory) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = fuse.S_IFDIR | 0o555
	out.SetTimes(nil, &d.newest, &d.newest)
	return 0
}

type file struct {
	fs.Inode
	image   *inventory.Image
	f       *File
	extents []inventory.Extent
}

// Getattr implements fs.NodeGetattrer. The blocks it reports as allocated are those that memory holds.
func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = fuse.S_IFREG | uint32(f.f.Mode&0o777)
	out.Size = uint64(f.f.Size)
	out.Blocks = uint64(f.f.UnsavedBytes()+f.f.CleanBytes()+511) / 512
	out.Blksize = 4096
	out.Nlink = max(1, f.f.NLink)
	out.Uid, out.Gid = f.f.UID, f.f.GID
	out.SetTimes(&f.f.Atime, &f.f.Mtime, &f.f.Ctime)
	return 0
}

// Open implements fs.NodeOpener. Files never change, so the page cache may keep their content.
func (f *file) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&(syscall.O_WRONLY|syscall.O_RDWR|syscall.O_TRUNC) != 0 {
		return nil, 0, syscall.EROFS
	}
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

// Read implements fs.NodeReader. It never answers with less than was asked for:
// to the kernel that would mean the end of the file. After an error, the kernel
// asks again page by page, so that good pages next to a missing one are read.
func (f *file) Read(_ context.Context, _ fs.FileHandle, dst []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if off >= f.f.Size {
		return fuse.ReadResultData(nil), 0
	}
	n, err := f.image.ReadAt(dst, off, f.f.Size, f.extents, f.missing)
	if err != nil {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(dst[:n]), 0
}

// Listxattr implements fs.NodeListxattrer. It lists two attributes, which say how much of
// a file memory holds.
func (f *file) Listxattr(_ context.Context, dst []byte) (uint32, syscall.Errno) {
	names := "user.understudy.state\x00user.understudy.unsaved\x00"
	if len(dst) < len(names) {
		return uint32(len(names)), syscall.ERANGE
	}
	return uint32(copy(dst, names)), 0
}

// Getxattr implements fs.NodeGetxattrer.
func (f *file) Getxattr(_ context.Context, name string, dst []byte) (uint32, syscall.Errno) {
	var value string
	switch name {
	case "user.understudy.state":
		value = string(f.f.State)
	case "user.understudy.unsaved":
		value = fmt.Sprint(f.f.UnsavedBytes())
	default:
		return 0, syscall.ENODATA
	}
	if len(dst) < len(value) {
		return uint32(len(value)), syscall.ERANGE
	}
	return uint32(copy(dst, value)), 0
}

func (f *file) missing(dst []byte, off int64) error {
	if f.f.Fill != nil {
		return f.f.Fill(dst, off)
	}
	return inventory.ErrAbsent
}

var (
	_ fs.NodeGetattrer   = (*directory)(nil)
	_ fs.NodeGetattrer   = (*file)(nil)
	_ fs.NodeOpener      = (*file)(nil)
	_ fs.NodeReader      = (*file)(nil)
	_ fs.NodeListxattrer = (*file)(nil)
	_ fs.NodeGetxattrer  = (*file)(nil)
)
