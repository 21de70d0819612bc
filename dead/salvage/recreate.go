package salvage

import (
	"cmp"
	"fmt"
	"iter"
	"path"
	"slices"
	"strings"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
)

// Metadata is everything about a file besides its unsaved data, on a file system whose log
// is not finished from memory (XFS, btrfs): the disk may have none of it.
type Metadata struct {
	Root      uint64 // the btrfs subvolume that the file is in
	Committed bool   // the disk has everything else, or gets it by a recovery of its log
	// Nameless says that memory does not have the path of the file. Path is empty then, as it is for the top directory.
	Nameless bool
	// The following are empty if Committed is set.
	Paths    []string // all that are in memory
	Former   []string // of what was deleted while it was open: paths that it had until then
	Absent   []string // of a directory: names in it that nothing had; there may be more
	Target   string   // of a symbolic link
	Device   uint32   // of a device file (pagecache.Inode)
	Settings pagecache.Settings
	// Attributes are the extended attributes, all of them. Lacking says why they are not known; then ACL says that it may have an ACL.
	Attributes []pagecache.Attribute
	Lacking    error
	ACL        bool
	// The content that is not in the runs: zeros, bytes that are mapped to the disk, and bytes
	// that are neither in memory nor known to be on the disk. All three are ascending.
	Zeros    []addr.Span
	Mapped   []pagecache.Mapped
	Unknown  []addr.Span
	Unmapped error // why it is not known where the unknown bytes are, if nothing of that is
	// Kept says that the disk has all content that is not in the runs.
	Kept bool
}

// unknownBytes returns how many bytes of the content are unknown.
func (l *Metadata) unknownBytes() int64 {
	n := int64(0)
	for _, s := range l.Unknown {
		n += s.Len()
	}
	return n
}

// ForDisk plans how to bring a disk to the state of a file system in memory. For
// the ext family it is the same as Of: the rest is left to the journal. For XFS and
// btrfs the plan has every file of which memory may be ahead of the disk. A file with
// unknown bytes is refused, unless partial is set.
func ForDisk(c *pagecache.Cache, s *pagecache.Superblock, partial bool) (*Plan, error) {
	if s.HasBuffers() {
		return Of(c, s)
	}
	p := &Plan{Kernel: c.Kernel().Release, Super: *s, cache: c, mem: c.Kernel().Memory()}
	w := &diskWalk{c: c, s: s, p: p, partial: partial, paths: c.Paths(s), dirs: make(map[string]*pagecache.Inode)}
	var err error
	switch s.Type {
	case "xfs":
		if w.xfs, err = c.XFS(s); err == nil {
			p.xfsRecords, p.xfsLast, err = w.xfs.Records()
		}
	case "btrfs":
		if w.btrfs, err = c.Btrfs(s); err == nil {
			p.btrfsSuper, p.btrfsCommitted, p.btrfsLogging = w.btrfs.Super, w.btrfs.LastCommitted, w.btrfs.Logging
			w.attrs = w.btrfs.Attributes()
		}
	default:
		err = fmt.Errorf("%s: %w: it can be extracted from memory, and not written to its disk", s.Type, ErrUnsupported)
	}
	if err != nil {
		return nil, fmt.Errorf("plan salvage of %s: %w", s.ID, err)
	}
	listed := make(map[addr.Virt]struct{})
	for i, err := range c.Inodes(s) {
		if err == nil {
			listed[i.Addr] = struct{}{}
			err = w.add(i)
		}
		if err != nil {
			p.note(err)
		}
	}
	var dropped iter.Seq[error]
	if w.xfs != nil {
		dropped = w.xfs.Dropped(listed)
	} else {
		dropped = w.btrfs.Dropped(listed)
	}
	for err := range dropped {
		p.note(err)
	}
	w.addDirs()
	slices.SortFunc(p.Files, func(a, b File) int {
		return cmp.Or(cmp.Compare(a.Metadata.Root, b.Metadata.Root), cmp.Compare(a.Ino, b.Ino), cmp.Compare(a.Generation, b.Generation))
	})
	p.stage()
	return p, nil
}

// diskWalk plans for one file system that is not of the ext family.
type diskWalk struct {
	c       *pagecache.Cache
	s       *pagecache.Superblock
	p       *Plan
	partial bool
	xfs     *pagecache.XFS   // nil for another type
	btrfs   *pagecache.Btrfs // likewise
	attrs   *pagecache.BtrfsAttributes
	paths   *pagecache.Paths
	dirs    map[string]*pagecache.Inode // committed directories
	absent  int                         // names, in Metadata.Absent of all directories
}

// maxAbsent bounds how many names that nothing had a plan has: further directories are without.
const maxAbsent = 1 << 16

// add plans for one inode.
func (w *diskWalk) add(i *pagecache.Inode) error {
	if i.Ino < w.s.FirstFile() || w.xfs != nil && w.xfs.Internal(i) || w.btrfs != nil && w.btrfs.Internal(i) {
		return nil
	}
	f := fileOf(i)
	var err error
	f.Path, err = w.paths.Of(i)
	f.Metadata = &Metadata{Nameless: err != nil} // then it is found by its number
	committed, err := w.committed(i, f.Metadata)
	if err != nil {
		return &pagecache.Refusal{Inode: i.Ino, Path: f.Path, Reason: pagecache.UnknownStructure, Cause: err}
	}
	f.Metadata.Committed = committed
	kind := i.Mode & pagecache.ModeType
	if committed && kind == pagecache.ModeDir && !f.Metadata.Nameless {
		w.dirs[f.Path] = i
	}
	if i.Deleted() {
		if committed {
			w.p.Deleted++
			return nil
		}
		// The VFS takes a name away after the file system is done (fs/namei.c, vfs_unlink, vfs_rename): what still has one was just being
		// deleted, or another file was being renamed over it, and is still under its old name.
		if f.NLink = uint32(len(w.paths.All(i))); f.NLink == 0 {
			f.Metadata.Former = w.paths.Former(i)
			w.p.Files = append(w.p.Files, f)
			return nil
		}
	}
	if committed && !i.Regular() || i.New && f.Metadata.Nameless && !committed {
		return nil // or it was just being created
	}
	if err := w.content(i, &f); err != nil {
		return err
	}
	if committed && len(f.Runs) == 0 {
		return nil
	}
	if !committed {
		f.Metadata.Paths = w.paths.All(i)
		if kind == pagecache.ModeDir && !f.Metadata.Nameless && w.absent < maxAbsent {
			f.Metadata.Absent = w.paths.Absent(i)
			w.absent += len(f.Metadata.Absent)
		}
		f.Metadata.Device = i.Device
		w.attributes(i, f.Metadata)
		if f.Metadata.Settings, err = w.settings(i); err != nil {
			return &pagecache.Refusal{Inode: i.Ino, Path: f.Path, Reason: pagecache.UnknownStructure, Cause: err}
		}
		if kind == pagecache.ModeLink {
			f.Metadata.Target = w.target(i)
		}
	}
	if n := f.Metadata.unknownBytes(); n > 0 {
		err := fmt.Errorf("of %d bytes %d are not in memory, and those of the disk may be older", f.Size, n)
		if why := f.Metadata.Unmapped; why != nil {
			err = fmt.Errorf("%w: %v", err, why)
		}
		if w.partial {
			err = fmt.Errorf("%w; the rest is written", err)
		}
		refusal := &pagecache.Refusal{Inode: i.Ino, Path: f.Path, Reason: pagecache.Partial, Cause: err}
		if !w.partial {
			return refusal
		}
		w.p.note(refusal)
	}
	w.p.Files = append(w.p.Files, f)
	return nil
}

// target returns the target of a symbolic link; empty if memory does not have it: the link is
// then not created again.
func (w *diskWalk) target(i *pagecache.Inode) string {
	var link func(*pagecache.Inode) (string, error)
	if w.xfs != nil {
		link = w.xfs.Link
	} else {
		link = w.btrfs.Link
	}
	if target, err := link(i); err == nil {
		return target
	}
	target, _ := w.c.Link(i)
	return target
}

// attributes adds the extended attributes.
func (w *diskWalk) attributes(i *pagecache.Inode, l *Metadata) {
	if w.xfs != nil {
		l.Attributes, l.Lacking = w.xfs.Attributes(i)
		l.ACL = l.Lacking != nil && w.xfs.MayHaveACL(i)
	} else {
		l.Attributes, l.Lacking = w.attrs.Of(i)
		l.ACL = l.Lacking != nil && (i.ACL || i.ACLUnknown)
	}
}

// settings returns what chattr(1) and xfs_io(8) had set.
func (w *diskWalk) settings(i *pagecache.Inode) (pagecache.Settings, error) {
	switch kind := i.Mode & pagecache.ModeType; {
	case kind != pagecache.ModeDir && !i.Regular():
		return pagecache.Settings{}, nil
	case w.xfs != nil:
		return w.xfs.Settings(i)
	}
	return w.btrfs.Settings(i)
}

func (w *diskWalk) committed(i *pagecache.Inode, l *Metadata) (committed bool, err error) {
	if w.xfs != nil {
		return w.xfs.Committed(i)
	}
	if l.Root, err = w.btrfs.Root(i); err != nil {
		return false, err
	}
	return w.btrfs.Committed(i)
}

// addDirs adds the committed directories that uncommitted files are in: creating files
// in them changes their times, which are then restored.
func (w *diskWalk) addDirs() {
	added := make(map[string]bool)
	for _, f := range slices.Clone(w.p.Files) {
		for _, name := range f.Metadata.Paths {
			for dir := parentOf(name); !added[dir]; dir = parentOf(dir) {
				added[dir] = true
				if i := w.dirs[dir]; i != nil {
					d := fileOf(i)
					d.Path, d.Metadata = dir, &Metadata{Committed: true}
					if w.btrfs != nil {
						d.Metadata.Root, _ = w.btrfs.Root(i) // it was read before
					}
					w.p.Files = append(w.p.Files, d)
				}
			}
		}
	}
}

// parentOf returns the directory of a path; empty for a name in the top directory.
func parentOf(name string) string {
	if !strings.Contains(name, "/") {
		return ""
	}
	return path.Dir(name)
}
