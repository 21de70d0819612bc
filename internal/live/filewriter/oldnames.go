package filewriter

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// oldNames is a search for names that files had before they were renamed.
type oldNames struct {
	r       *restorer
	surplus map[inodeID]*unlogged // files with more names than they had
	back    map[inodeID]*unlogged // files that were deleted, and have names on the disk
}

// oldNames removes names that files had before they were renamed, and reports deleted files that are back. It comes when files have the names
// that they had at last: then it is known which are not needed any more. It looks first in the directories of the names that those files have, where
// temporary names are, and at all names of their subvolumes only while an old name is not found.
func (r *restorer) oldNames() {
	o := &oldNames{r: r, surplus: make(map[inodeID]*unlogged), back: make(map[inodeID]*unlogged)}
	for id, l := range r.known {
		names := r.names(l)
		switch {
		case l.attr.Links == 0 && names > 0:
			o.back[id] = l
		case l.attr.Links > 0 && !l.failed && names > uint64(l.attr.Links) && r.complete(l):
			o.surplus[id] = l
		}
	}
	o.beside()
	for dev, top := range o.volumes() {
		o.walk(dev, top)
	}
	byInode := func(a, b *unlogged) int { return cmp.Compare(a.file.Inode, b.file.Inode) }
	for _, l := range slices.SortedFunc(maps.Values(o.back), byInode) { // no name of it is known
		r.act(wire.ActBack, l, fmt.Sprintf(".inode/%d-%d", l.file.Inode, l.file.Generation), "")
	}
}

// names is how many names a file has on the disk.
func (r *restorer) names(l *unlogged) uint64 {
	fd, err := r.reopen(l)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0
	}
	return uint64(st.Nlink)
}

// beside looks in the directories that the files are in. A directory that cannot be read keeps its
// names, which does no harm. The same holds for walk.
func (o *oldNames) beside() {
	dirs := make(map[string]bool)
	for _, l := range o.surplus {
		for _, at := range l.attr.Paths {
			dirs[above(string(at))] = true
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		fd, err := o.r.openDir(dir)
		if err != nil {
			continue
		}
		f := os.NewFile(uintptr(fd), procPath(fd))
		entries, _ := f.ReadDir(-1)
		for _, d := range entries {
			if !d.IsDir() {
				o.see(filepath.Join(dir, d.Name()), d)
			}
		}
		f.Close()
	}
}

// volumes are the top directories of the subvolumes that the files are in, by device number. No file has
// names in two subvolumes.
func (o *oldNames) volumes() map[uint64]string {
	tops := make(map[uint64]string)
	for id, l := range o.surplus {
		top := above(l.path())
		var st unix.Stat_t
		for top != "" && unix.Lstat(filepath.Join(o.r.top, above(top)), &st) == nil && uint64(st.Dev) == id.dev {
			top = above(top)
		}
		tops[id.dev] = top
	}
	return tops
}

// above is the directory of a path. It is empty for a name in the top directory.
func above(at string) string {
	if dir := filepath.Dir(at); dir != "." {
		return dir
	}
	return ""
}

// walk looks at all names of a subvolume, until every old one is found.
func (o *oldNames) walk(dev uint64, top string) {
	_ = filepath.WalkDir(filepath.Join(o.r.top, top), func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if d.IsDir() {
			if st, ok := statOf(d); !ok || st.Dev != dev {
				return fs.SkipDir
			}
			return nil
		}
		if name, err := filepath.Rel(o.r.top, at); err == nil {
			o.see(name, d)
		}
		for id := range o.surplus {
			if id.dev == dev {
				return nil
			}
		}
		return fs.SkipAll
	})
}

func statOf(d fs.DirEntry) (*syscall.Stat_t, bool) {
	info, err := d.Info()
	if err != nil {
		return nil, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return st, ok
}

// see removes a name if it is an old one, and reports it if it is that of a deleted file.
func (o *oldNames) see(at string, d fs.DirEntry) {
	st, ok := statOf(d)
	if !ok {
		return
	}
	id := inodeID{st.Dev, st.Ino}
	if l := o.back[id]; l != nil {
		o.r.act(wire.ActBack, l, at, "")
		delete(o.back, id)
		return
	}
	l := o.surplus[id]
	if l == nil || !o.r.stale(l, at) {
		return
	}
	if err := o.r.unlink(at, id, 0); err != nil {
		o.r.fail(l, fmt.Errorf("remove its old name %q: %w", at, err))
	} else {
		o.r.act(wire.ActUnlinked, l, at, "")
	}
	if l.failed || o.r.names(l) <= uint64(l.attr.Links) {
		delete(o.surplus, id)
	}
}

// unlink removes a name, if it is that of the inode id. how is AT_REMOVEDIR for a directory.
func (r *restorer) unlink(at string, id inodeID, how int) error {
	dir, err := unix.Openat2(r.mount, filepath.Dir(at), &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: beneath})
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	var st unix.Stat_t
	if err := unix.Fstatat(dir, filepath.Base(at), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if idOf(&st) != id {
		return errors.New("another file has it by now")
	}
	return unix.Unlinkat(dir, filepath.Base(at), how)
}
