package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// lostDirectory is where e2fsck puts what has no name, as "#INODE".
const lostDirectory = "lost+found"

// name undoes operations on names that had not returned.
func (a *Agent) name(_ context.Context, r wire.NameRequest) (result wire.NameResult, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	d, err := a.disk(r.Disk)
	if err != nil {
		return result, err
	}
	mount, err := os.Open(d.Mount)
	if err != nil {
		return result, fmt.Errorf("open %s: %w", d.Mount, err)
	}
	defer mount.Close()
	return Undo(mount, r), nil
}

// Undo gives what a check has left without its name, or with one too many, the
// names that it had before an operation on it that had not returned. Only names
// are changed; what was being made, and never had one, is removed, and what has no
// link left in memory.
func Undo(mount *os.File, r wire.NameRequest) wire.NameResult {
	u := &undoer{mount: int(mount.Fd()), request: r, files: make(map[uint64]*wire.Named)}
	for i := range r.Files {
		u.files[r.Files[i].Inode] = &r.Files[i]
	}
	for _, ino := range r.Check.Lost {
		u.each(ino, u.found)
	}
	for _, ino := range r.Check.Surplus {
		// A directory's links are its own and those of what is in it. A file that is not
		// known had nothing going on about it: the check has counted right.
		if f := u.files[ino]; f != nil && !f.Dir {
			u.each(ino, u.surplus)
		}
	}
	for _, ino := range r.Check.Cleared {
		// If nothing was going on about it, whoever has its data says that it is missing.
		if f := u.files[ino]; f != nil && !u.exists(f) {
			at := ""
			if len(f.Paths) > 0 {
				at = string(f.Paths[0])
			}
			u.act(wire.ActGone, f, at, "")
		}
	}
	return u.result
}

var errNoName = errors.New("the dead kernel had no name of it in memory")

// undoer works beneath a mount point.
type undoer struct {
	mount   int
	request wire.NameRequest
	files   map[uint64]*wire.Named
	result  wire.NameResult
}

func (u *undoer) each(ino uint64, do func(*wire.Named) error) {
	f := u.files[ino]
	err := errNoName
	if f != nil {
		err = do(f)
	} else {
		f = &wire.Named{Inode: ino}
	}
	if err != nil {
		u.result.Failures = append(u.result.Failures, wire.Failure{Inode: ino, Generation: f.Generation, Reason: "it was left where the check put it: " + err.Error()})
	}
}

func (u *undoer) act(kind string, f *wire.Named, at, other string) {
	act := wire.Act{Kind: kind, Inode: f.Inode, Generation: f.Generation, Path: []byte(at)}
	if other != "" {
		act.Other = []byte(other)
	}
	u.result.Acts = append(u.result.Acts, act)
}

// place is a name in a directory that is open, whose times are put back when it is
// closed.
type place struct {
	dir   int
	name  string
	times []unix.Timespec
}

// open opens the directory of a path.
func (u *undoer) open(at string) (*place, error) {
	dir, name := path.Split(at)
	if name == "" || name == "." || name == ".." {
		return nil, fmt.Errorf("%q is no name", name)
	}
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOATIME | unix.O_CLOEXEC
	fd, err := unix.Openat2(u.mount, path.Clean("./"+dir), &unix.OpenHow{Flags: flags, Resolve: beneath})
	if err != nil {
		return nil, fmt.Errorf("open directory %q: %w", dir, err)
	}
	p := &place{dir: fd, name: name}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("stat directory %q: %w", dir, err)
	}
	p.times = []unix.Timespec{st.Atim, st.Mtim}
	return p, nil
}

func (p *place) close() {
	_ = setTimes(p.dir, p.times) // only their times differ then
	unix.Close(p.dir)
}

// inode is what has the name, 0 if nothing has.
func (p *place) inode() (uint64, error) {
	var st unix.Stat_t
	err := unix.Fstatat(p.dir, p.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	return st.Ino, err
}

// remove takes the name away.
func (p *place) remove() error {
	err := unix.Unlinkat(p.dir, p.name, 0)
	if errors.Is(err, unix.EISDIR) {
		err = unix.Unlinkat(p.dir, p.name, unix.AT_REMOVEDIR)
	}
	return err
}

// found is about what is in lost+found.
func (u *undoer) found(f *wire.Named) error {
	from := fmt.Sprintf("%s/#%d", lostDirectory, f.Inode)
	lost, err := u.open(from)
	if err != nil {
		return err
	}
	defer lost.close()
	ino, err := lost.inode()
	if err == nil && ino != f.Inode {
		err = fmt.Errorf("%s is inode %d", from, ino)
	}
	if err != nil {
		return err
	}
	if err := sameGeneration(lost, f); err != nil {
		return err
	}
	// Of what has no link any more the operation is all but done, and its data is in
	// no plan.
	if done := f.Links == 0; done || f.New && len(f.Paths) == 0 {
		kind, at := wire.ActUndone, from
		if done {
			kind = wire.ActFinished
		}
		if len(f.Paths) > 0 {
			at = string(f.Paths[0])
		}
		if err := lost.remove(); err != nil {
			return err
		}
		u.act(kind, f, at, "")
		return nil
	}
	if len(f.Paths) == 0 {
		return errNoName
	}
	for _, at := range f.Paths {
		if err := u.ensure(f, string(at), true); err != nil {
			return err
		}
	}
	return nil
}

// sameGeneration wants the inode in a place to be the one that is meant.
func sameGeneration(p *place, f *wire.Named) error {
	h, _, err := unix.NameToHandleAt(p.dir, p.name, 0)
	if err != nil {
		return fmt.Errorf("get handle: %w", err)
	}
	want, err := handleOf("", &wire.File{Inode: f.Inode, Generation: f.Generation}, 0)
	if err == nil && !slices.Equal(h.Bytes(), want.Bytes()) {
		err = errors.New("it is another inode of that number")
	}
	return err
}

// ensure gives a file a name that it had. What had got that by a renaming gets its
// own back first, if evict is set.
func (u *undoer) ensure(f *wire.Named, at string, evict bool) error {
	to, err := u.open(at)
	if err != nil {
		return err
	}
	defer to.close()
	other, err := to.inode()
	switch {
	case err != nil || other == f.Inode:
		return err
	case other != 0 && !evict:
		return fmt.Errorf("inode %d has the name %q", other, at)
	case other != 0:
		if err := u.evict(to, at, other); err != nil {
			return err
		}
	}
	return u.give(f, to, at)
}

// evict has an inode that was renamed to a name have only those that it had.
func (u *undoer) evict(from *place, at string, ino uint64) error {
	f := u.files[ino]
	if f == nil || len(f.Paths) == 0 || f.Has(at) {
		return fmt.Errorf("inode %d has the name %q, and no other in the dead kernel's memory", ino, at)
	}
	if err := sameGeneration(from, f); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(from.dir, from.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR { // which has one name, and none yet but this
		return u.ensure(f, string(f.Paths[0]), false)
	}
	for _, own := range f.Paths {
		if err := u.ensure(f, string(own), false); err != nil {
			return err
		}
	}
	return from.remove()
}

// give gives an inode a name that nothing has: the one in lost+found, if it is
// there, or one more.
func (u *undoer) give(f *wire.Named, to *place, at string) error {
	fh, err := handleOf("", &wire.File{Inode: f.Inode, Generation: f.Generation}, 0)
	if err != nil {
		return err
	}
	fd, err := unix.OpenByHandleAt(u.mount, fh, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open by handle: %w", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	from := fmt.Sprintf("%s/#%d", lostDirectory, f.Inode)
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if from, err = u.whereIs(fd); err != nil {
			return err
		}
	}
	lost, err := u.open(from)
	if err != nil {
		return err
	}
	defer lost.close()
	ino, err := lost.inode()
	if err != nil {
		return err
	}
	if ino != f.Inode {
		// By its path in /proc: by descriptor alone takes a capability over all.
		err := unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), to.dir, to.name, unix.AT_SYMLINK_FOLLOW)
		if err == nil {
			u.act(wire.ActLinked, f, at, "")
		}
		return err
	}
	if err := unix.Renameat2(lost.dir, lost.name, to.dir, to.name, unix.RENAME_NOREPLACE); err != nil {
		return err
	}
	u.act(wire.ActRenamed, f, at, from)
	return nil
}

// whereIs is the path of an open directory, from the mount point.
func (u *undoer) whereIs(fd int) (string, error) {
	top, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", u.mount))
	if err != nil {
		return "", err
	}
	at, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", err
	}
	return filepath.Rel(top, at)
}

// surplus takes the names away that a file had not had: they are in a directory
// with an operation that had not returned.
func (u *undoer) surplus(f *wire.Named) error {
	if len(f.Paths) == 0 {
		return errNoName
	}
	first, err := u.open(string(f.Paths[0]))
	if err != nil {
		return err
	}
	defer first.close()
	var st unix.Stat_t
	err = unix.Fstatat(first.dir, first.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && st.Ino != f.Inode {
		err = fmt.Errorf("its name is inode %d's", st.Ino)
	}
	if err != nil {
		return fmt.Errorf("find %q: %w", f.Paths[0], err)
	}
	if err := sameGeneration(first, f); err != nil {
		return err
	}
	if uint64(st.Nlink) <= uint64(f.Links) {
		return nil // it has as many as it had
	}
	var extra []string
	for _, dir := range u.request.Dirs {
		names, err := u.namesOf(f, string(dir))
		if err != nil {
			return err
		}
		extra = append(extra, names...)
	}
	if uint64(len(extra)) != uint64(st.Nlink)-uint64(f.Links) {
		return fmt.Errorf("it has %d names, had %d, and %q may be those too many", st.Nlink, f.Links, extra)
	}
	for _, at := range extra {
		if err := u.settle(f, at); err != nil {
			return err
		}
	}
	return nil
}

// settle takes a name away from a file that was being given it, and hands it back to
// what had it. If the check has cleared that, since it was empty, the renaming is
// finished instead: the name from before it goes.
func (u *undoer) settle(f *wire.Named, at string) error {
	had := u.owner(at)
	gone, kind := at, wire.ActUndone
	if had != nil && !u.exists(had) {
		kind = wire.ActFinished
		old := u.changing(f)
		if len(old) != 1 {
			return fmt.Errorf("inode %d is gone, which it was to replace as %q, and %q may be its name from before", had.Inode, at, old)
		}
		gone, had = old[0], nil
	}
	p, err := u.open(gone)
	if err != nil {
		return err
	}
	err = p.remove()
	p.close()
	if err != nil {
		return err
	}
	u.act(kind, f, gone, "")
	if had == nil {
		return nil
	}
	return u.ensure(had, at, false)
}

// owner is what had a name, nil if nothing had it.
func (u *undoer) owner(at string) *wire.Named {
	for i := range u.request.Files {
		if f := &u.request.Files[i]; f.Has(at) && f.Links > 0 {
			return f
		}
	}
	return nil
}

// exists reports whether the check has left an inode.
func (u *undoer) exists(f *wire.Named) bool {
	fh, err := handleOf("", &wire.File{Inode: f.Inode, Generation: f.Generation}, 0)
	if err != nil {
		return false
	}
	fd, err := unix.OpenByHandleAt(u.mount, fh, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Nlink > 0
}

// changing are the names of a file in directories with an operation that had not
// returned.
func (u *undoer) changing(f *wire.Named) (names []string) {
	for _, at := range f.Paths {
		dir := strings.TrimSuffix(path.Dir("/"+string(at)), "/")
		if slices.ContainsFunc(u.request.Dirs, func(d []byte) bool { return "/"+string(d) == dir || len(d) == 0 && dir == "" }) {
			names = append(names, string(at))
		}
	}
	return names
}

// namesOf finds the names of a file in a directory that the dead kernel did not
// have.
func (u *undoer) namesOf(f *wire.Named, dir string) ([]string, error) {
	p, err := u.open(path.Join(dir, "name"))
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // it was being removed, or moved: the names that are found tell whether they are all
	}
	if err != nil {
		return nil, err
	}
	defer p.close()
	fd, err := unix.Openat(p.dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	open := os.NewFile(uintptr(fd), dir)
	defer open.Close()
	entries, err := open.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		at := path.Join(dir, e.Name())
		var st unix.Stat_t
		if err := unix.Fstatat(p.dir, e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, err
		}
		if st.Ino == f.Inode && !f.Has(at) {
			out = append(out, at)
		}
	}
	return out, nil
}
