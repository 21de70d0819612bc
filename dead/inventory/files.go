package inventory

import (
	"errors"
	"fmt"
	"path"
	"runtime"
	"slices"
	"sync"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
)

// State says how a file compares to what the disk has.
type State string

// A file is New if the disk does not know of it: the transaction that creates it
// was not committed, or there is no disk. It is Uncommitted if all that memory has of it was written, and
// File.Uncommitted is set.
const (
	Unknown     State = "unknown"
	New         State = "new"
	Changed     State = "changed"
	Deleted     State = "deleted-but-open"
	Uncommitted State = "uncommitted"
	Saved       State = "saved" // nothing of it is unsaved
)

// File is a regular file that the kernel had in memory.
type File struct {
	*pagecache.Inode
	FileSystem *FileSystem
	Path       string   // from the top of its file system; empty if it has no name
	Links      []string // its other paths in memory
	State      State
	Age        time.Duration // how long it has been unsaved; negative if unknown
	// Uncommitted says that a change of its size, or of where its bytes lie, was not committed: the disk may have an older size, and
	// lack bytes that are in Clean, although they were written. On btrfs it may be any other change, too. It is not set if the file is New.
	Uncommitted bool
	Contents
}

// Label returns the path of the file, or a name made of inode and generation for a
// file that has no path.
func (f *File) Label() string {
	if f.Path == "" {
		return fmt.Sprintf("%s/%d-%d", NoPath, f.Ino, f.Generation)
	}
	return f.Path
}

// Found is what a walk over a file system found.
type Found struct {
	Files []*File // in the order of paths
	// Refused are whole inodes; refusals within a file are in the file.
	Refused []*pagecache.Refusal
	Faults  []error // of walks: what they would have found is missing
}

// Complete reports whether nothing was refused or missed.
func (f *Found) Complete() bool {
	return len(f.Refused)+len(f.Faults) == 0 && !slices.ContainsFunc(f.Files, func(f *File) bool { return len(f.Refused) > 0 })
}

// Query says which files are wanted.
type Query struct {
	All    bool                   // also those of which nothing is unsaved
	Clean  bool                   // say which saved bytes are in memory, too
	Accept func(path string) bool // nil: any
}

// ErrUnsupported is wrapped for a file system that is not understood.
var ErrUnsupported = errors.New("file system type is not supported")

// unread returns the error for a file system that is not understood: it says what waits there.
func (f *FileSystem) unread() error {
	waits := "no page of a file of it waits to be written"
	switch {
	case f.waitingFiles > 0:
		waits = fmt.Sprintf("%d files have up to %d bytes that wait to be written", f.waitingFiles, f.waitingBytes)
	case f.keepsElsewhere():
		waits = "it keeps what waits to be written in buffers of its own, and how much that is is not known"
	}
	if f.waitingErr != nil {
		waits += fmt.Sprintf(", as far as can be told: %v", f.waitingErr)
	}
	return fmt.Errorf("read %s: %s: %w: %s", f.Device, f.Super.Type, ErrUnsupported, waits)
}

// Unread returns what waits to be written on a file system whose type is not understood: how
// many files, and how many bytes at most. unread is false if the type is understood.
func (f *FileSystem) Unread() (files int, bytes int64, unread bool) {
	return f.waitingFiles, f.waitingBytes, !f.understood()
}

// Find finds the files of a file system.
func (f *FileSystem) Find(q Query) Found {
	var found Found
	if !f.understood() {
		found.Faults = append(found.Faults, f.unread())
		return found
	}
	inodes, uncommitted := f.inodes(q, &found)
	var births *pagecache.Births
	if f.Super.HasBuffers() {
		births, _ = f.image.Cache.Births(f.Super, f.image.Clock) // nil: unknown
	}
	workers := max(1, min(runtime.GOMAXPROCS(0), len(inodes)/64))
	parts := make([][]*File, workers)
	var wg sync.WaitGroup
	for w := range workers {
		mine := inodes[len(inodes)*w/workers : len(inodes)*(w+1)/workers]
		wg.Go(func() { parts[w] = f.examine(mine, uncommitted, births, q) })
	}
	wg.Wait()
	found.Files = slices.Concat(parts...)
	slices.SortFunc(found.Files, byPath)
	return found
}

func byPath(a, b *File) int {
	switch al, bl := a.Label(), b.Label(); {
	case al < bl:
		return -1
	case al > bl:
		return 1
	}
	return 0
}

func (f *Found) note(err error) {
	var refusal *pagecache.Refusal
	if errors.As(err, &refusal) {
		f.Refused = append(f.Refused, refusal)
		return
	}
	f.Faults = append(f.Faults, err)
}

// examine looks into each inode and returns those that are wanted.
func (f *FileSystem) examine(inodes []*pagecache.Inode, uncommitted map[addr.Virt]struct{}, births *pagecache.Births, q Query) []*File {
	paths := f.image.Cache.Paths(f.Super)
	var out []*File
	for _, i := range inodes {
		file := &File{Inode: i, FileSystem: f, Age: -1}
		file.Contents = f.contents(i, births, q.Clean)
		_, file.Uncommitted = uncommitted[i.Addr]
		if file.State = f.state(file, births); file.State == New {
			file.Uncommitted = false // the state says more
		}
		// A new file is lost even if it is empty, or if only its data is on the disk.
		lost := file.State == New || f.Super.InMemory() || len(file.Unsaved)+len(file.Refused) > 0 || file.Uncommitted
		if !q.All && !lost {
			continue
		}
		file.Path, _ = paths.Of(i) // without a name it has a label
		if i.NLink > 1 && file.Path != "" {
			others := paths.All(i)
			slices.Sort(others)
			file.Links = slices.DeleteFunc(slices.Compact(others), func(p string) bool { return p == file.Path })
		}
		if q.Accept != nil && !q.Accept(file.Label()) && !slices.ContainsFunc(file.Links, q.Accept) {
			continue
		}
		if len(file.Unsaved) > 0 {
			if age, ok := f.image.Cache.UnsavedFor(f.image.Clock, i); ok {
				file.Age = age
			}
		}
		out = append(out, file)
	}
	return out
}

func (f *FileSystem) state(file *File, births *pagecache.Births) State {
	switch {
	case file.Deleted():
		return Deleted
	case f.Super.InMemory():
		return New
	}
	birth := births.Of(file.Inode)
	switch {
	case birth == pagecache.Unborn:
		return New
	case len(file.Unsaved)+len(file.Refused) == 0 && file.Uncommitted:
		return Uncommitted
	case birth == pagecache.Born && len(file.Unsaved) > 0:
		return Changed
	case birth == pagecache.Born && len(file.Refused) == 0:
		return Saved
	}
	return Unknown
}

// Excluded counts refusals because memory was left out of a dump.
func (f *Found) Excluded() int {
	n := 0
	count := func(refusals []*pagecache.Refusal) {
		for _, r := range refusals {
			if LeftOut(r) {
				n += int(min(max(r.Pages, 1), 1<<30))
			}
		}
	}
	count(f.Refused)
	for _, file := range f.Files {
		count(file.Refused)
	}
	return n
}

// LeftOut reports whether a refusal is because memory is not in the image.
func LeftOut(r *pagecache.Refusal) bool {
	var fault *ram.Fault
	return errors.As(r, &fault)
}

// Glob returns a function that reports whether a path matches a pattern, in the syntax
// of path.Match. A pattern without a slash is matched with the last name of a path; the
// name "**" in a pattern matches any number of directories.
func Glob(pattern string) (func(string) bool, error) {
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, fmt.Errorf("parse pattern %q: %w", pattern, err)
	}
	parts := split(pattern)
	return func(name string) bool {
		if len(parts) == 1 && parts[0] != "**" {
			ok, _ := path.Match(pattern, path.Base(name)) // parsed before
			return ok
		}
		return matchParts(parts, split(name))
	}, nil
}

// matchParts matches a path component by component. Only the last "**" is ever
// tried again, so that the time is bounded by the product of both lengths.
func matchParts(pattern, name []string) bool {
	p, n, star, resume := 0, 0, -1, 0
	for n < len(name) {
		if p < len(pattern) && pattern[p] == "**" {
			star, resume = p, n
			p++
			continue
		}
		if p < len(pattern) {
			if ok, _ := path.Match(pattern[p], name[n]); ok {
				p, n = p+1, n+1
				continue
			}
		}
		if star < 0 {
			return false
		}
		resume++
		p, n = star+1, resume
	}
	for p < len(pattern) && pattern[p] == "**" {
		p++
	}
	return p == len(pattern)
}
