package filewriter

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// unlogged is a file that may be older on the disk, or missing there, on a file system
// whose log was not finished. It has the file's metadata, and what was done to the file.
type unlogged struct {
	attr *wire.Attr
	file *wire.File
	// made is the file that was created in its place, named dir/temp until it is complete.
	made      *unix.FileHandle
	before    bool // made by an interrupted attempt
	dir, temp string
	// died is when the dead kernel ended: what was changed later is left alone.
	died time.Time

	late    bool  // its settings are to be set in the end
	lacks   error // what could not be done of its extended attributes
	stale   bool  // its extended attributes may be older
	unsure  bool  // it may lack its ACL
	missing bool  // it was not on the disk
	changed bool  // it was changed after the crash
	failed  bool
	ready   bool // its content has been prepared for the runs
}

func (l *unlogged) kind() uint32 { return l.attr.Mode & unix.S_IFMT }

// path is the file's first name, or empty.
func (l *unlogged) path() string {
	if len(l.attr.Paths) == 0 {
		return ""
	}
	return string(l.attr.Paths[0])
}

// errLater says that a file was changed after the crash.
var errLater = errors.New("it was changed after the crash")

// old checks that a file that is not deleted was not changed since the crash, by its ctime,
// which no system call sets.
func (l *unlogged) old(st *unix.Stat_t) error {
	if l.attr.Links > 0 && l.later(st) {
		return errLater
	}
	return nil
}

// later reports whether an inode was changed after the crash.
func (l *unlogged) later(st *unix.Stat_t) bool {
	return !l.died.IsZero() && time.Unix(st.Ctim.Sec, st.Ctim.Nsec).After(l.died)
}

// prepare makes the content of a file on the disk ready for the runs: what was a hole
// becomes one, and what is neither a hole nor in the runs must have the extents that the
// dead kernel had.
func (l *unlogged) prepare(t *target) error {
	if l.before && !l.ready {
		l.ready = true
		return l.punchZeros(t)
	}
	if l.made != nil || l.ready || l.attr.Committed {
		return nil
	}
	if t.size == 0 {
		t.lacks = l.setEmpty(t.fd)
	}
	if err := checkExtents(t.fd, l.attr.Mapped); err != nil {
		return err
	}
	if t.size < t.file.Size {
		if err := l.checkBehind(t); err != nil && !l.attr.Partial {
			return err
		} else if err != nil {
			t.lacks = errors.Join(t.lacks, fmt.Errorf("%w: these are zeros, and the rest is written", err))
		}
	}
	if t.size > t.file.Size {
		if err := unix.Ftruncate(t.fd, t.file.Size); err != nil {
			return fmt.Errorf("cut to %d bytes: %w", t.file.Size, err)
		}
		t.size = t.file.Size
	}
	if err := l.punchZeros(t); err != nil {
		return err
	}
	l.ready = true
	return nil
}

// checkBehind checks that all content which the disk has of a file beyond the file's size there is written anew:
// the file system makes it zeros when the file becomes longer.
func (l *unlogged) checkBehind(t *target) error {
	all, err := extents(t.fd)
	if err != nil {
		return err
	}
	known := slices.Clone(l.attr.Zeros)
	for _, r := range t.file.Runs {
		known = append(known, wire.Range{Off: r.Off, Len: r.Len})
	}
	slices.SortFunc(known, func(a, b wire.Range) int { return cmp.Compare(a.Off, b.Off) })
	for _, e := range all {
		at, end := max(t.size, int64(e.Logical)), min(t.file.Size, int64(e.Logical+e.Length))
		if at >= end || e.Flags&fiemapUnwritten != 0 {
			continue
		}
		for _, r := range known {
			if r.Off <= at {
				at = max(at, r.Off+r.Len)
			}
		}
		if at < end {
			return fmt.Errorf("%d bytes of its content at %d are not in memory, and lie beyond its size of %d bytes on the disk", end-at, at, t.size)
		}
	}
	return nil
}

// punchZeros makes holes where the file had them.
func (l *unlogged) punchZeros(t *target) error {
	for _, z := range l.attr.Zeros {
		if err := punch(t.fd, z, t.size); err != nil {
			return err
		}
	}
	return nil
}

// own gives an open file the owner and the permissions that it had, and notes whether it had other settings.
func (l *unlogged) own(t *target) error {
	if l.attr.Committed {
		return nil
	}
	if err := l.ownFD(t.fd); err != nil {
		return err
	}
	if l.attr.XattrsAll || l.stale && len(l.file.Runs) > 0 {
		t.capability = nil // it has those of the dead kernel, or the dead kernel's write took them
	}
	now, want, err := l.wants(t.fd)
	if err != nil {
		return err // the flags that were cleared are put back
	}
	l.late, t.locked = want != now, false
	return nil
}

// ownFD sets owner, permissions and extended attributes, in this order: a change of owner clears the
// set-user-ID bit (chown(2)) and the capabilities.
func (l *unlogged) ownFD(fd int) error {
	if err := unix.Fchown(fd, int(l.attr.UID), int(l.attr.GID)); err != nil {
		return fmt.Errorf("set owner: %w", err)
	}
	if err := unix.Fchmod(fd, l.mode()); err != nil {
		return fmt.Errorf("set permissions: %w", err)
	}
	l.setXattrs(procPath(fd))
	return nil
}

func timesOf(f *wire.File) []unix.Timespec {
	return []unix.Timespec{
		{Sec: f.Atime.Sec, Nsec: int64(f.Atime.Nsec)},
		{Sec: f.Mtime.Sec, Nsec: int64(f.Mtime.Nsec)},
	}
}
