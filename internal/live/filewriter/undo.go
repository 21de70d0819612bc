package filewriter

import (
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

// # The cases
//
// A kernel died with an operation on names in flight (create, link, unlink, rename), and
// half of it is on the disk. e2fsck(8) has moved an inode without a name to lost+found,
// corrected the link count of an inode with more names than links, or cleared an empty inode
// without a name. The dead kernel's memory has the names from before the operation: they
// change only when the operation returns. So the operation is undone, or finished if nothing
// is left to undo it with. Each case has a row here, and a row of the same number in the test.
//
//	      memory has of the inode             what is done                            act
//	In lost+found (Check.Lost):
//	L1    nothing                             left there, reported
//	L2    it with another generation          left there, reported
//	L3    link count 0                        removed: an unlink all but done         finished
//	L4    being created, no name yet          removed: a create, mkdir, symlink       undone
//	L5    no name, and not being created      left there, reported
//	L6    a name that nothing has             moved there: an unlink, a rename        renamed
//	L7    several names                       moved to the first that is free, then
//	                                          linked to the others                    renamed, linked
//	L8    a name that another inode has, but  that inode gets its own names, then
//	      memory has other names for that one L6 or L7: a rename over it              (both)
//	L9    a name that another inode has, and  left there, reported
//	      memory has no other name for it
//	L10   a name in a directory that is gone, left there, reported
//	      or a path out of the file system
//
//	With more names than links (Check.Surplus):
//	S1    nothing                             nothing: the check counted right
//	S2    it is a directory                   nothing: its links are not names
//	S3    no name                             left, reported
//	S4    a name that another inode has       left, reported
//	S5    it with another generation          left, reported
//	S6    as many links as it has now         nothing
//	S7    its names; and directories with an  the others are removed: a link, or a
//	      operation in flight have as many    rename                                  undone
//	      other names of it as are too many
//	S8    S7, and another inode's name        S7, and that inode gets its name back:
//	      is among the others                 a rename over it                        (both)
//	S9    S8, but the check cleared that      the name from before is removed, the
//	      inode                               new one stays: the rename is finished   finished
//	S10   S9, but more than one may be the    left, reported
//	      name from before
//	S11   S7, but they have more or fewer     left, reported
//	      other names than are too many
//
//	Cleared (Check.Cleared):
//	C1    nothing                             nothing: its data is reported missing
//	C2    it, and it is still on the disk     nothing
//	C3    it, and it is gone                  reported as gone, by its first name     gone

// lostDirectory is where e2fsck puts inodes without a name, as "#INODE".
const lostDirectory = "lost+found"

// Undo gives the names that memory has back to inodes that a check left without a name, or
// with one too many, because an operation on names was in flight when the kernel died. Only
// names change. An inode that was being created and never had a name is removed, and so is
// one with link count 0 in memory. The file system is of the ext family.
func Undo(mount *os.File, r wire.NameRequest) wire.NameResult {
	u := &undoer{mount: int(mount.Fd()), request: r, files: make(map[uint64]*wire.Named)}
	for i := range r.Files {
		u.files[r.Files[i].Inode] = &r.Files[i]
	}
	for _, ino := range r.Check.Lost {
		f, err := u.files[ino], errNoName
		if f != nil {
			err = u.lost(f)
		} else { // L1
			f = &wire.Named{Inode: ino}
		}
		u.fail(f, err)
	}
	for _, ino := range r.Check.Surplus {
		if f := u.files[ino]; f != nil && !f.Dir { // else S1, S2
			u.fail(f, u.surplus(f))
		}
	}
	for _, ino := range r.Check.Cleared {
		if f := u.files[ino]; f != nil && !u.exists(f) { // C3, else C1, C2
			at := ""
			if len(f.Paths) > 0 {
				at = string(f.Paths[0])
			}
			u.act(wire.ActGone, f, at, "")
		}
	}
	return u.result
}

var errNoName = errors.New("the dead kernel's memory has no name for it")

// undoer works beneath a mount point.
type undoer struct {
	mount   int // descriptor of the top directory
	request wire.NameRequest
	files   map[uint64]*wire.Named // by inode number
	result  wire.NameResult
}

func (u *undoer) open(at string) (*entry, error) { return openEntry(u.mount, at) }

func (u *undoer) fail(f *wire.Named, err error) {
	if err != nil {
		u.result.Failures = append(u.result.Failures, wire.Failure{Inode: f.Inode, Generation: f.Generation, Reason: "its names are as the check left them: " + err.Error()})
	}
}

func (u *undoer) act(kind string, f *wire.Named, at, other string) {
	act := wire.Act{Kind: kind, Inode: f.Inode, Generation: f.Generation, Path: []byte(at)}
	if other != "" {
		act.Other = []byte(other)
	}
	u.result.Acts = append(u.result.Acts, act)
}

// lostPath is the name that a check gave an inode.
func lostPath(f *wire.Named) string { return fmt.Sprintf("%s/#%d", lostDirectory, f.Inode) }

// lost brings back an inode that a check moved to lost+found, or removes it (L2 to L10).
func (u *undoer) lost(f *wire.Named) error {
	from := lostPath(f)
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
	if err := lost.isGenerationOf(f); err != nil {
		return err // L2
	}
	switch {
	case f.Links == 0: // L3: its data is in no plan
		return u.removeLost(f, lost, wire.ActFinished)
	case f.New && len(f.Paths) == 0: // L4
		return u.removeLost(f, lost, wire.ActUndone)
	case len(f.Paths) == 0: // L5
		return errNoName
	}
	for _, at := range f.Paths {
		if err := u.ensure(f, string(at), true); err != nil {
			return err
		}
	}
	return nil
}

// removeLost removes an inode from lost+found, and reports it by the name it had, if any.
func (u *undoer) removeLost(f *wire.Named, lost *entry, act string) error {
	if err := lost.remove(); err != nil {
		return err
	}
	at := lostPath(f)
	if len(f.Paths) > 0 {
		at = string(f.Paths[0])
	}
	u.act(act, f, at, "")
	return nil
}

// ensure gives an inode a name that it had. If another inode was renamed to that name, that
// inode gets its own names back first, provided that evict is set (L8, L9).
func (u *undoer) ensure(f *wire.Named, at string, evict bool) error {
	to, err := u.open(at)
	if err != nil {
		return err // L10
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

// evict takes a name from an inode that was renamed to it, and gives the inode the names
// that memory has for it.
func (u *undoer) evict(from *entry, at string, ino uint64) error {
	f := u.files[ino]
	if f == nil || len(f.Paths) == 0 || f.Has(at) {
		return fmt.Errorf("inode %d has the name %q, and memory has no other name for that inode", ino, at) // L9
	}
	if err := from.isGenerationOf(f); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(from.dir, from.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR { // it has one name, which moves
		return u.ensure(f, string(f.Paths[0]), false)
	}
	for _, own := range f.Paths {
		if err := u.ensure(f, string(own), false); err != nil {
			return err
		}
	}
	return from.remove()
}

// give gives an inode a name that nothing has: by moving it from lost+found, if it is
// there, else by a link. A directory is moved from wherever it is.
func (u *undoer) give(f *wire.Named, to *entry, at string) error {
	fd, err := u.openInode(f)
	if err != nil {
		return fmt.Errorf("open by handle: %w", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	from := lostPath(f)
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if from, err = u.pathOf(fd); err != nil {
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
		// By its path in /proc: AT_EMPTY_PATH requires CAP_DAC_READ_SEARCH (linkat(2)).
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

// openInode opens an inode by its handle, without access to its content.
func (u *undoer) openInode(f *wire.Named) (int, error) {
	fh, err := handleOfNamed(f)
	if err != nil {
		return -1, err
	}
	return unix.OpenByHandleAt(u.mount, fh, unix.O_PATH|unix.O_CLOEXEC)
}

// pathOf is the path of an open directory, from the mount point.
func (u *undoer) pathOf(fd int) (string, error) {
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

// surplus removes the names that a file did not have: they are in directories with an
// operation in flight (S3 to S11).
func (u *undoer) surplus(f *wire.Named) error {
	if len(f.Paths) == 0 {
		return errNoName // S3
	}
	first, err := u.open(string(f.Paths[0]))
	if err != nil {
		return err
	}
	defer first.close()
	var st unix.Stat_t
	err = unix.Fstatat(first.dir, first.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && st.Ino != f.Inode {
		err = fmt.Errorf("inode %d has it", st.Ino) // S4
	}
	if err != nil {
		return fmt.Errorf("find its name %q: %w", f.Paths[0], err)
	}
	if err := first.isGenerationOf(f); err != nil {
		return err // S5
	}
	if uint64(st.Nlink) <= uint64(f.Links) {
		return nil // S6
	}
	var extra []string
	for _, dir := range u.request.Dirs {
		names, err := u.strangeNames(f, string(dir))
		if err != nil {
			return err
		}
		extra = append(extra, names...)
	}
	if uint64(len(extra)) != uint64(st.Nlink)-uint64(f.Links) { // S11
		return fmt.Errorf("it has %d names and had %d; %q are not in memory", st.Nlink, f.Links, extra)
	}
	for _, at := range extra {
		if err := u.undoName(f, at); err != nil {
			return err
		}
	}
	return nil
}

// undoName removes a name that a file was being given, and gives it back to the inode that
// had it, if any (S7, S8). If the check cleared that inode, the rename is finished instead:
// the file's name from before is removed (S9, S10).
func (u *undoer) undoName(f *wire.Named, at string) error {
	had := u.owner(at)
	gone, kind := at, wire.ActUndone
	if had != nil && !u.exists(had) {
		kind = wire.ActFinished
		old := u.changing(f)
		if len(old) != 1 {
			return fmt.Errorf("it was being renamed to %q, over inode %d, which the check cleared, and any of %q may be its name from before", at, had.Inode, old)
		}
		gone, had = old[0], nil
	}
	e, err := u.open(gone)
	if err != nil {
		return err
	}
	err = e.remove()
	e.close()
	if err != nil {
		return err
	}
	u.act(kind, f, gone, "")
	if had == nil {
		return nil
	}
	return u.ensure(had, at, false)
}

// owner is the inode that had a name, or nil if none had it.
func (u *undoer) owner(at string) *wire.Named {
	for i := range u.request.Files {
		if f := &u.request.Files[i]; f.Has(at) && f.Links > 0 {
			return f
		}
	}
	return nil
}

// exists reports whether an inode is still on the disk, with a name.
func (u *undoer) exists(f *wire.Named) bool {
	fd, err := u.openInode(f)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Nlink > 0
}

// changing are the names of a file that are in directories with an operation in flight.
func (u *undoer) changing(f *wire.Named) (names []string) {
	for _, at := range f.Paths {
		dir := strings.TrimSuffix(path.Dir("/"+string(at)), "/")
		if slices.ContainsFunc(u.request.Dirs, func(d []byte) bool { return "/"+string(d) == dir || len(d) == 0 && dir == "" }) {
			names = append(names, string(at))
		}
	}
	return names
}

// strangeNames finds the names that a file has in a directory and that are not in memory.
func (u *undoer) strangeNames(f *wire.Named, dir string) ([]string, error) {
	e, err := u.open(path.Join(dir, "name"))
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // the directory was being removed or moved; if names were in it, this is S11
	}
	if err != nil {
		return nil, err
	}
	defer e.close()
	fd, err := unix.Openat(e.dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOATIME|unix.O_CLOEXEC, 0)
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
	for _, d := range entries {
		at := path.Join(dir, d.Name())
		var st unix.Stat_t
		if err := unix.Fstatat(e.dir, d.Name(), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, err
		}
		if st.Ino == f.Inode && !f.Has(at) {
			out = append(out, at)
		}
	}
	return out, nil
}
