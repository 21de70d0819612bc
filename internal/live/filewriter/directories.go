package filewriter

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// beneath keeps a lookup within the file system, whatever names are in it.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// openDir opens a directory by the path that it had: it may have another one on
// the disk.
func (r *restorer) openDir(at string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOATIME | unix.O_CLOEXEC
	if fh, ok := r.dirs[at]; ok {
		fd, err := unix.OpenByHandleAt(r.mount, fh, flags)
		if err != nil {
			return -1, fmt.Errorf("open directory %q: %w", at, err)
		}
		return fd, nil
	}
	if at == "" {
		at = "."
	}
	fd, err := unix.Openat2(r.mount, at, &unix.OpenHow{Flags: flags, Resolve: beneath})
	if err != nil {
		return -1, fmt.Errorf("open directory %q: %w", at, err)
	}
	return fd, nil
}

// parent opens the directory of a path, and gives the name in it.
func (r *restorer) parent(at string) (int, string, error) {
	dir, name := path.Split(at)
	if name == "" || name == "." || name == ".." {
		return -1, "", fmt.Errorf("%q is not a file name", name)
	}
	fd, err := r.openDir(strings.TrimSuffix(dir, "/"))
	return fd, name, err
}

// directory finds a directory on the disk, or makes it.
func (r *restorer) directory(l *unlogged) error {
	if l.attr.Links == 0 && !l.attr.Committed {
		return nil // removed, and still open somewhere
	}
	if l.missing {
		return r.makeDirectory(l)
	}
	fd, err := r.open(l)
	if err != nil {
		return fmt.Errorf("open by handle: %w", err)
	}
	defer unix.Close(fd)
	fh, err := handleOf(r.kind, l.file, l.attr.Root)
	if err != nil {
		return err
	}
	at := l.path()
	if at != "" || l.isTop() {
		r.dirs[at] = fh
	}
	if err := l.old(fd); errors.Is(err, errLater) {
		l.failed = true // left alone, and not reported: only its times differ
		return nil
	} else if err != nil {
		return err
	}
	if l.attr.Committed {
		return nil
	}
	return r.rename(l, fd)
}

// isTop reports whether it is the top directory.
func (l *unlogged) isTop() bool { return len(l.attr.Paths) == 1 && len(l.attr.Paths[0]) == 0 }

// rename gives a directory the path that it had.
func (r *restorer) rename(l *unlogged, fd int) error {
	at := l.path()
	now, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return fmt.Errorf("find directory: %w", err)
	}
	now, err = filepath.Rel(r.top, now)
	if err != nil || now == at || at == "" {
		return err
	}
	to, name, err := r.parent(at)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	if err := unix.Renameat2(r.mount, now, to, name, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("rename from %q to %q: %w", now, at, err)
	}
	r.act(wire.ActRenamed, l, at, now)
	return nil
}

// makeDirectory creates a directory that is missing, or takes one of its name.
func (r *restorer) makeDirectory(l *unlogged) error {
	at := l.path()
	if l.attr.Committed || at == "" {
		return fmt.Errorf("%w, and it has no name in memory", errMissing)
	}
	in, name, err := r.parent(at)
	if err != nil {
		return err
	}
	defer unix.Close(in)
	err = unix.Mkdirat(in, name, 0o700)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make directory: %w", err)
	}
	made := err == nil
	fd, err := unix.Openat(in, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open directory: %w", err)
	}
	defer unix.Close(fd)
	fh, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("get handle: %w", err)
	}
	r.dirs[at] = fh
	if made {
		r.act(wire.ActCreated, l, at, "")
	}
	return nil
}

// endDirectories gives directories the attributes that they had, now that nothing
// is made in them any more.
func (r *restorer) endDirectories() {
	for _, l := range r.all {
		if l.kind() != unix.S_IFDIR || l.failed {
			continue
		}
		if _, ok := r.dirs[l.path()]; !ok {
			continue
		}
		if err := r.endDirectory(l); err != nil {
			r.fail(l, err)
		}
	}
}

func (r *restorer) endDirectory(l *unlogged) error {
	fd, err := r.openDir(l.path())
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !l.attr.Committed {
		if err := ownFD(fd, l.attr); err != nil {
			return err
		}
	}
	if err := setTimes(fd, timesOf(l.file)); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}
