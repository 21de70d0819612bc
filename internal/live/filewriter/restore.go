package filewriter

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// restorer creates what is missing on the disk, and gives files and directories the
// names and attributes that they had.
type restorer struct {
	mount  int    // descriptor of the top directory
	top    string // path of the top directory
	kind   string // type of the file system
	all    []*unlogged
	dirs   map[string]unix.FileHandle // of directories, by the path that they had
	known  map[inodeID]*unlogged      // inodes on the disk that are not directories
	result *wire.ApplyResult
}

// inodeID identifies an inode on one disk: each subvolume of btrfs has its own
// device number.
type inodeID struct{ dev, ino uint64 }

func idOf(st *unix.Stat_t) inodeID { return inodeID{uint64(st.Dev), st.Ino} }

func newRestorer(mount *os.File, kind string, files []wire.File, attrs []wire.Attr, died time.Time, result *wire.ApplyResult) (*restorer, error) {
	top, err := os.Readlink(procPath(int(mount.Fd()))) // its name may be relative, or lead through symbolic links
	if err != nil {
		return nil, fmt.Errorf("find mount point: %w", err)
	}
	r := &restorer{
		mount: int(mount.Fd()), top: top, kind: kind, result: result,
		dirs: make(map[string]unix.FileHandle), known: make(map[inodeID]*unlogged),
	}
	for i := range attrs {
		a := &attrs[i]
		if a.File < 0 || a.File >= len(files) {
			return nil, fmt.Errorf("%w: attributes of file %d of %d", wire.ErrPlan, a.File, len(files))
		}
		r.all = append(r.all, &unlogged{attr: a, file: &files[a.File], died: died})
	}
	return r, nil
}

// restore carries out a plan with metadata: it creates what is missing, writes the files, and names them.
func (w *writer) restore(mount *os.File, files []wire.File, attrs []wire.Attr, died time.Time, result *wire.ApplyResult) error {
	restore, err := newRestorer(mount, w.kind, files, attrs, died, result)
	if err != nil {
		return err
	}
	var some []wire.File
	var about []*unlogged
	_ = measure(result, "find files", func() error {
		found := restore.begin()
		for _, i := range slices.Sorted(maps.Keys(found)) {
			some, about = append(some, files[i]), append(about, found[i])
		}
		return nil
	})
	if err := measure(result, "write files", func() error { return w.writeAll(some, about) }); err != nil {
		return err
	}
	for i := range w.targets {
		w.targets[i].report(result)
		about[i].failed = about[i].failed || w.targets[i].err != nil
	}
	return measure(result, "name files", func() error {
		restore.name()
		restore.deleteFiles()
		restore.oldNames()
		restore.absent()
		restore.dropTemporary()
		restore.deleteDirectories()
		restore.endDirectories()
		restore.lock()
		restore.reportXattrs()
		return nil
	})
}

// fail records that something could not be done to a file, of which nothing more is done.
func (r *restorer) fail(l *unlogged, err error) {
	l.failed = true
	r.warn(l, err)
}

// warn records that something could not be done to a file. All else is done as for other files.
func (r *restorer) warn(l *unlogged, err error) {
	r.result.Failures = append(r.result.Failures, wire.Failure{Inode: l.file.Inode, Generation: l.file.Generation, Reason: err.Error()})
}

func (r *restorer) act(kind string, l *unlogged, at, other string) {
	a := wire.Act{Kind: kind, Inode: l.file.Inode, Generation: l.file.Generation, Path: []byte(at)}
	if other != "" {
		a.Other = []byte(other)
	}
	r.result.Acts = append(r.result.Acts, a)
}

// begin creates missing directories, and missing files under temporary names. It returns
// the files to be written, by their index in the plan.
func (r *restorer) begin() map[int]*unlogged {
	targets := make(map[int]*unlogged)
	// Existing inodes are found before any is created: btrfs gives new inodes the
	// numbers that missing ones had, and the generation may be the same.
	for _, l := range r.all {
		if err := r.probe(l); err != nil {
			r.fail(l, err)
		}
	}
	// A directory comes after the one that it is in.
	slices.SortStableFunc(r.all, func(a, b *unlogged) int { return cmp.Compare(len(a.path()), len(b.path())) })
	for _, l := range r.all {
		if l.kind() == unix.S_IFDIR && !l.failed {
			if err := r.directory(l); err != nil {
				r.fail(l, err)
			}
		}
	}
	for _, l := range r.all {
		var err error
		switch {
		case l.failed || l.kind() == unix.S_IFDIR || l.attr.Links == 0:
		case l.missing && l.attr.Committed:
			err = errMissing
		case l.kind() != unix.S_IFREG:
			err = r.special(l)
		case l.missing:
			if err = r.create(l); err == nil {
				targets[l.attr.File] = l
			}
		default:
			targets[l.attr.File] = l
		}
		if err != nil {
			r.fail(l, err)
		}
	}
	return targets
}

// open opens an inode by its handle, without access to its content.
func (r *restorer) open(l *unlogged) (int, error) {
	fh, err := handleOf(r.kind, l.file, l.attr.Root)
	if err != nil {
		return -1, err
	}
	return unix.OpenByHandleAt(r.mount, fh, unix.O_PATH|unix.O_CLOEXEC)
}

var errMissing = errors.New("not on the disk: its creation was not committed")

// probe checks whether an inode is on the disk, and was not changed after the crash. It comes
// before anything is done to the inode, since that changes its ctime.
func (r *restorer) probe(l *unlogged) error {
	fd, err := r.open(l)
	if errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOENT) {
		l.missing = true
		r.warnOfXattrs(l, nil)
		return nil
	}
	if err != nil {
		return fmt.Errorf("open by handle: %w", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	l.changed = l.later(&st)
	if st.Mode&unix.S_IFMT != l.kind() {
		return fmt.Errorf("it has another type on the disk: mode %o", st.Mode)
	}
	if l.kind() != unix.S_IFDIR {
		if !l.attr.Committed && st.Nlink > 0 {
			r.known[idOf(&st)] = l
		}
		err := l.old(&st)
		if err == nil {
			r.warnOfXattrs(l, &st)
		}
		return err
	}
	if l.named() {
		if r.dirs[l.path()], err = handleOf(r.kind, l.file, l.attr.Root); err != nil {
			return err
		}
	}
	l.failed = l.old(&st) != nil // left alone, and not reported: only its times differ
	if !l.failed {
		r.warnOfXattrs(l, &st)
	}
	return nil
}

// create creates an empty file for a missing one, under a temporary name.
func (r *restorer) create(l *unlogged) error {
	if len(l.attr.Paths) == 0 {
		return fmt.Errorf("%w, and it has no name in memory", errMissing)
	}
	if len(l.attr.Mapped) > 0 || l.attr.Kept {
		err := fmt.Errorf("%w, and a part of its content is not in memory", errMissing)
		if !l.attr.Partial {
			return err
		}
		r.warn(l, fmt.Errorf("%w: it was made again without that", err))
	}
	dir, err := r.temporary(l)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	if done, err := r.madeBefore(l, dir); done || err != nil {
		return err
	}
	fd, err := unix.Openat(dir, l.temp, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	defer unix.Close(fd)
	if err := l.dropInherited(procPath(fd)); err != nil {
		return err
	}
	if err := l.setEmpty(fd); err != nil {
		r.warn(l, err)
	}
	return l.isMade(fd, "")
}

// temporary chooses the temporary name under which a missing file is created, opens the directory of
// that name, and removes what an interrupted attempt has left under it.
func (r *restorer) temporary(l *unlogged) (int, error) {
	dir, _ := path.Split(l.path())
	l.dir, l.temp = strings.TrimSuffix(dir, "/"), fmt.Sprintf(".understudy-%d-%d", l.file.Inode, l.file.Generation)
	fd, err := r.openDir(l.dir)
	if err != nil {
		return -1, err
	}
	if err := unix.Unlinkat(fd, l.temp, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		unix.Close(fd)
		return -1, fmt.Errorf("remove what is left of an earlier attempt: %w", err)
	}
	return fd, nil
}

// isMade notes what was created for a missing file: the open file fd, or, if name is not empty,
// what has that name in the open directory fd.
func (l *unlogged) isMade(fd int, name string) error {
	made, _, err := unix.NameToHandleAt(fd, name, unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("get handle: %w", err)
	}
	l.made = &made
	return nil
}

// madeBefore takes over the file that an interrupted attempt has created for a missing one: a file
// with its name, its size, its modification time to the nanosecond, its owner and permissions, and no
// other name. If an unrelated file has all of these, nothing is lost: it becomes what the path is to have.
func (r *restorer) madeBefore(l *unlogged, dir int) (bool, error) {
	fd, err := unix.Openat(dir, path.Base(l.path()), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, nil // nothing has the name, or something else
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, fmt.Errorf("stat: %w", err)
	}
	t := timesOf(l.file)
	same := l.hasMode(st.Mode) && st.Uid == l.attr.UID && st.Gid == l.attr.GID && st.Size == l.file.Size && st.Mtim == t[1]
	if !same || st.Nlink != 1 || len(l.attr.Paths) != 1 || l.attr.Settings.Flags&lockingFlags != 0 || r.known[idOf(&st)] != nil {
		return false, nil
	}
	l.before, l.temp = true, ""
	return true, l.isMade(fd, "")
}
