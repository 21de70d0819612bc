package filewriter

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// name gives the files that were written, and all others that are not directories, the names that they had: first
// the names that nothing else has.
func (r *restorer) name() {
	for _, replace := range []bool{false, true} {
		for _, l := range r.all {
			if l.kind() == unix.S_IFDIR || l.attr.Committed || l.failed {
				continue
			}
			if !replace && l.made != nil {
				continue
			}
			for _, at := range l.attr.Paths {
				if err := r.nameOne(l, string(at), replace); err != nil {
					r.fail(l, fmt.Errorf("give it the name %q: %w", at, err))
					break
				}
			}
		}
	}
}

// nameOne gives a file one name. Another file that has that name loses it only if
// replace is set.
func (r *restorer) nameOne(l *unlogged, at string, replace bool) error {
	dir, name, err := r.parent(at)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	fd, err := r.reopen(l)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var mine, there unix.Stat_t
	if err := unix.Fstat(fd, &mine); err != nil {
		return err
	}
	err = unix.Fstatat(dir, name, &there, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == nil && idOf(&there) == idOf(&mine):
		return nil
	case err == nil && !replace:
		return nil // left until replace is set
	case err == nil:
		if err := r.giveWay(wire.ActDisplaced, l, dir, name, at, &there); err != nil {
			return err
		}
	case !errors.Is(err, unix.ENOENT):
		return err
	}
	if l.temp != "" {
		from, err := r.openDir(l.dir)
		if err != nil {
			return err
		}
		defer unix.Close(from)
		if err := l.joining(fd, dir, func() error { return unix.Renameat2(from, l.temp, dir, name, unix.RENAME_NOREPLACE) }); err != nil {
			return err
		}
		l.temp = ""
		r.act(wire.ActCreated, l, at, "")
		return nil
	}
	// By its path in /proc: AT_EMPTY_PATH requires CAP_DAC_READ_SEARCH (linkat(2)).
	link := func() error { return unix.Linkat(unix.AT_FDCWD, procPath(fd), dir, name, unix.AT_SYMLINK_FOLLOW) }
	if err := l.joining(fd, dir, link); err != nil {
		return err
	}
	r.act(wire.ActLinked, l, at, "")
	return nil
}

// reopen opens the file that was written.
func (r *restorer) reopen(l *unlogged) (int, error) {
	if l.made != nil {
		return unix.OpenByHandleAt(r.mount, *l.made, unix.O_PATH|unix.O_CLOEXEC)
	}
	return r.open(l)
}

// giveWay takes a name from another file, for l. If that file is known to have lost the name
// before the crash, the name is removed; else the file is renamed in the same directory, which is an act of the given kind.
func (r *restorer) giveWay(kind string, l *unlogged, dir int, name, at string, there *unix.Stat_t) error {
	if other := r.known[idOf(there)]; other != nil && r.stale(other, at) {
		if err := unix.Unlinkat(dir, name, 0); err != nil {
			return err
		}
		r.act(wire.ActUnlinked, other, at, "")
		return nil
	}
	for n := range 100 {
		to := fmt.Sprintf("%s.displaced-%d", name[:min(len(name), 200)], there.Ino) // a name has at most 255 bytes
		if n > 0 {
			to = fmt.Sprintf("%s-%d", to, n)
		}
		err := unix.Renameat2(dir, name, dir, to, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err == nil {
			r.act(kind, l, at, filepath.Join(filepath.Dir(at), to))
		}
		return err
	}
	return errors.New("another file has it, and every name to move that to is taken")
}

// stale reports whether a name that a file has on the disk is one that it had lost: the
// file was deleted, and not changed since, or all names that it had are known and on the disk, and this is not
// one of them.
func (r *restorer) stale(l *unlogged, at string) bool {
	if l.attr.Links == 0 {
		return !l.changed
	}
	return !l.failed && !slices.ContainsFunc(l.attr.Paths, func(p []byte) bool { return string(p) == at }) && r.complete(l)
}

// complete reports whether a file has all the names on the disk that it had.
func (r *restorer) complete(l *unlogged) bool {
	if int(l.attr.Links) != len(l.attr.Paths) {
		return false
	}
	fd, err := r.reopen(l)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var mine, there unix.Stat_t
	if unix.Fstat(fd, &mine) != nil {
		return false
	}
	for _, at := range l.attr.Paths {
		dir, name, err := r.parent(string(at))
		if err != nil {
			return false
		}
		err = unix.Fstatat(dir, name, &there, unix.AT_SYMLINK_NOFOLLOW)
		unix.Close(dir)
		if err != nil || idOf(&there) != idOf(&mine) {
			return false
		}
	}
	return true
}

// dropTemporary removes files that were created and did not get their names.
func (r *restorer) dropTemporary() {
	for _, l := range r.all {
		if l.made == nil || l.temp == "" {
			continue
		}
		dir, err := r.openDir(l.dir)
		if err != nil {
			continue // that was reported before
		}
		if err := unix.Unlinkat(dir, l.temp, 0); err != nil {
			r.fail(l, fmt.Errorf("remove %q in %q: %w", l.temp, l.dir, err))
		}
		unix.Close(dir)
	}
}
