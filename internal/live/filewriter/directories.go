package filewriter

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// beneath keeps a lookup within the file system, whatever names are in the path.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV

// openDir opens a directory by the path that it had. On the disk it may have
// another path.
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

// parent opens the directory of a path, and returns the name in it.
func (r *restorer) parent(at string) (int, string, error) {
	dir, name := path.Split(at)
	if name == "" || name == "." || name == ".." {
		return -1, "", fmt.Errorf("%q is not a file name", name)
	}
	fd, err := r.openDir(strings.TrimSuffix(dir, "/"))
	return fd, name, err
}

// directory gives a directory the path that it had, or creates it if it is missing.
func (r *restorer) directory(l *unlogged) error {
	switch {
	case l.attr.Links == 0 && !l.attr.Committed:
		return nil // removed, and still open somewhere
	case l.missing:
		return r.makeDirectory(l)
	case l.attr.Committed:
		return nil
	}
	if err := r.unlockDirectory(l); err != nil {
		return err
	}
	fd, err := r.open(l)
	if err != nil {
		return fmt.Errorf("open by handle: %w", err)
	}
	defer unix.Close(fd)
	return r.rename(l, fd)
}

// unlockDirectory clears the inode flags that forbid changes to a directory and to the names in it, and notes whether it
// had other settings.
func (r *restorer) unlockDirectory(l *unlogged) error {
	if _, known := r.dirs[l.path()]; !known || !l.named() {
		return nil // nothing is made in it by its name
	}
	fd, err := r.openDir(l.path())
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	now, want, err := l.wants(fd)
	if err != nil {
		return err
	}
	l.late = want != now.unlocked()
	if err := now.unlocked().setTo(fd, now); err != nil {
		return err
	}
	if err := l.setEmpty(fd); err != nil {
		r.warn(l, err)
	}
	return nil
}

// isTop reports whether l is the top directory.
func (l *unlogged) isTop() bool { return len(l.attr.Paths) == 1 && len(l.attr.Paths[0]) == 0 }

// named reports whether a directory has a path. One that was removed while it was open has none; an empty path would be the top
// directory's.
func (l *unlogged) named() bool { return l.path() != "" || l.isTop() }

// rename gives a directory the path that it had.
func (r *restorer) rename(l *unlogged, fd int) error {
	at := l.path()
	now, err := r.whereIs(fd)
	if err != nil || now == at || at == "" {
		return err
	}
	to, name, err := r.parent(at)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	if err := r.vacate(l, to, name); err != nil {
		return err
	}
	if now, err = r.whereIs(fd); err != nil { // again: it may be inside what was moved away
		return err
	}
	if err := unix.Renameat2(r.mount, now, to, name, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("rename from %q to %q: %w", now, at, err)
	}
	r.act(wire.ActRenamed, l, at, now)
	return nil
}

// whereIs returns the path of an open directory, from the top of the file system.
func (r *restorer) whereIs(fd int) (string, error) {
	now, err := os.Readlink(procPath(fd))
	if err == nil {
		now, err = filepath.Rel(r.top, now)
	}
	if err != nil {
		return "", fmt.Errorf("find directory: %w", err)
	}
	return now, nil
}

// vacate moves away what has the name that a directory is to get. If that is a directory
// which had another path itself, it is moved there when its own turn comes.
func (r *restorer) vacate(l *unlogged, dir int, name string) error {
	var there unix.Stat_t
	err := unix.Fstatat(dir, name, &there, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err == nil {
		err = r.giveWay(wire.ActDisplaced, l, dir, name, l.path(), &there)
	}
	if err != nil {
		return fmt.Errorf("move what has the name %q: %w", l.path(), err)
	}
	return nil
}

// makeDirectory creates a directory that is missing, or takes over the one that an
// interrupted attempt has created for it.
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
	fd, err := l.directoryBefore(in, name)
	before := err == nil
	if !before {
		fd, err = r.newDirectory(l, in, name)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	fh, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("get handle: %w", err)
	}
	r.dirs[at], l.made = fh, &fh
	if err := r.unlockDirectory(l); err != nil {
		return err
	}
	if !before {
		r.act(wire.ActCreated, l, at, "")
	}
	return nil
}

// openingDir are the flags that open a directory, and nothing else that has its name.
const openingDir = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_NOATIME | unix.O_CLOEXEC

// directoryBefore opens the directory that an interrupted attempt has created for a missing one. It is
// recognized by its owner, its permissions and the time of its last access to the nanosecond: creating
// files in a directory changes none of them. A directory that the missing one is a copy of (cp -a) may have
// all of these too, but was created before the missing one.
func (l *unlogged) directoryBefore(in int, name string) (int, error) {
	fd, err := unix.Openat(in, name, openingDir, 0)
	if err != nil {
		return -1, err
	}
	var st unix.Statx_t
	err = unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
	ctime, atime := l.attr.Ctime, l.file.Atime
	younger := st.Mask&unix.STATX_BTIME != 0 && cmp.Or(cmp.Compare(st.Btime.Sec, ctime.Sec), cmp.Compare(st.Btime.Nsec, ctime.Nsec)) > 0
	if err == nil && (!younger || !l.hasMode(uint32(st.Mode)) || st.Uid != l.attr.UID || st.Gid != l.attr.GID || st.Atime.Sec != atime.Sec || st.Atime.Nsec != atime.Nsec) {
		err = unix.EEXIST
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// newDirectory makes a directory that a later attempt would recognize.
func (r *restorer) newDirectory(l *unlogged, in int, name string) (int, error) {
	if err := r.vacate(l, in, name); err != nil {
		return -1, err
	}
	var err error
	if r.isSubvolume(l) {
		err = makeSubvolume(in, name)
	} else if err = unix.Mkdirat(in, name, 0o700); err != nil {
		err = fmt.Errorf("make directory: %w", err)
	}
	if err != nil {
		return -1, err
	}
	fd, err := unix.Openat(in, name, openingDir, 0)
	if err != nil {
		return -1, fmt.Errorf("open directory: %w", err)
	}
	if err := errors.Join(l.dropInherited(procPath(fd)), l.ownDirectory(fd)); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// endDirectories gives directories the attributes that they had, now that nothing
// is made in them any more.
func (r *restorer) endDirectories() {
	for _, l := range r.all {
		if l.kind() != unix.S_IFDIR || l.failed || !l.named() {
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
	return l.ownDirectory(fd)
}

// ownDirectory gives an open directory the owner, the permissions and the times that it had.
func (l *unlogged) ownDirectory(fd int) error {
	if !l.attr.Committed {
		if err := l.ownFD(fd); err != nil {
			return err
		}
	}
	want := timesOf(l.file)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if st.Atim == want[0] && st.Mtim == want[1] {
		return nil // a flag, or a subvolume, may forbid to set them
	}
	if err := setTimes(fd, want); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	return nil
}
