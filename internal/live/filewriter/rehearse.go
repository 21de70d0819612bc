package filewriter

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// rehearsalFiles are the sizes of the files that a rehearsal writes, in bytes:
// whole pages and parts of one, one request and several.
var rehearsalFiles = []int64{1, page, 10*page + 100, chunk + 3*page + 1, 64 * page, 200}

// Rehearse makes files on a mounted file system of type kind and writes them by handle,
// with whatever the staging disk holds.
func Rehearse(dir, kind string, staging *os.File) error {
	var files []wire.File
	for i, size := range rehearsalFiles {
		f, err := newFile(filepath.Join(dir, fmt.Sprintf("file%d", i)), size)
		if err != nil {
			return err
		}
		f.Runs = []wire.Run{{Len: size}}
		files = append(files, f)
	}
	mount, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer mount.Close()
	if err := SyncFS(mount); err != nil {
		return err
	}
	w := &writer{mount: int(mount.Fd()), staging: int(staging.Fd()), kind: kind}
	if err := w.writeAll(files, asCommitted(kind, files)); err != nil {
		return err
	}
	var result wire.ApplyResult
	for i := range w.targets {
		w.targets[i].report(&result)
	}
	if len(result.Failures) > 0 {
		return fmt.Errorf("write file by handle: %s", result.Failures[0].Reason)
	}
	return nil
}

// topSubvolume is the number of the subvolume tree in which a new btrfs has its files
// (include/uapi/linux/btrfs_tree.h, BTRFS_FS_TREE_OBJECTID).
const topSubvolume = 5

// asCommitted describes files that are on the disk, for the file systems whose log is not finished
// (XFS and btrfs). It is nil for the ext family, which does not need it.
func asCommitted(kind string, files []wire.File) (about []*unlogged) {
	if kind != "xfs" && kind != "btrfs" {
		return nil
	}
	for i := range files {
		a := &wire.Attr{File: i, Committed: true, Links: 1, Mode: unix.S_IFREG}
		if kind == "btrfs" {
			a.Root = topSubvolume
		}
		about = append(about, &unlogged{attr: a, file: &files[i]})
	}
	return about
}

// newFile creates an empty file, and returns a plan that gives it a size.
func newFile(path string, size int64) (wire.File, error) {
	f, err := os.Create(path)
	if err != nil {
		return wire.File{}, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return wire.File{}, fmt.Errorf("stat: %w", err)
	}
	generation, err := unix.IoctlGetInt(int(f.Fd()), fsIocGetVersion)
	if err != nil {
		return wire.File{}, fmt.Errorf("get generation: %w", err)
	}
	return wire.File{Inode: st.Ino, Generation: uint32(generation), Size: size}, nil
}

// fsIocGetVersion is FS_IOC_GETVERSION, _IOR('v', 1, long): it gives an inode's
// generation (include/uapi/linux/fs.h).
const fsIocGetVersion = 0x80087601

// SyncFS makes all that was written to the file system of an open directory durable. It fails if a write failed since
// the directory was opened, or since the last call with it. A file system that has become read-only passes: the kernel
// has nothing to sync there (sync_filesystem, fs/sync.c).
func SyncFS(dir *os.File) error {
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", dir.Name(), err)
	}
	return nil
}
