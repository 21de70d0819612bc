package filewriter

import (
	"errors"
	"fmt"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// entry is a name in a directory that is open. The directory's times are put back when it
// is closed.
type entry struct {
	dir   int
	name  string
	times []unix.Timespec
}

// openEntry opens the directory of a path beneath a mount point. The name need not exist
// in it.
func openEntry(mount int, at string) (*entry, error) {
	dir, name := path.Split(at)
	if name == "" || name == "." || name == ".." {
		return nil, fmt.Errorf("%q is not a file name", name)
	}
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOATIME | unix.O_CLOEXEC
	fd, err := unix.Openat2(mount, path.Clean("./"+dir), &unix.OpenHow{Flags: flags, Resolve: beneath})
	if err != nil {
		return nil, fmt.Errorf("open directory %q: %w", dir, err)
	}
	e := &entry{dir: fd, name: name}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("stat directory %q: %w", dir, err)
	}
	e.times = []unix.Timespec{st.Atim, st.Mtim}
	return e, nil
}

func (e *entry) close() {
	_ = setTimes(e.dir, e.times) // on failure only the times differ
	unix.Close(e.dir)
}

// inode is the number of the inode that has the name, or 0 if none has.
func (e *entry) inode() (uint64, error) {
	var st unix.Stat_t
	err := unix.Fstatat(e.dir, e.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	return st.Ino, err
}

// remove removes the name, which may be that of a file or of an empty directory.
func (e *entry) remove() error {
	err := unix.Unlinkat(e.dir, e.name, 0)
	if errors.Is(err, unix.EISDIR) {
		err = unix.Unlinkat(e.dir, e.name, unix.AT_REMOVEDIR)
	}
	return err
}

// isGenerationOf checks that the inode that has the name has the generation of f, and not
// only its number.
func (e *entry) isGenerationOf(f *wire.Named) error {
	h, _, err := unix.NameToHandleAt(e.dir, e.name, 0)
	if err != nil {
		return fmt.Errorf("get handle: %w", err)
	}
	want, err := handleOfNamed(f)
	if err == nil && !slices.Equal(h.Bytes(), want.Bytes()) {
		err = fmt.Errorf("inode %d was given to another file since", f.Inode)
	}
	return err
}

// handleOfNamed is the handle of an inode that a check found, on a file system of the ext family.
func handleOfNamed(f *wire.Named) (unix.FileHandle, error) {
	return handleOf("", &wire.File{Inode: f.Inode, Generation: f.Generation}, 0)
}
