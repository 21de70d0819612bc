// Package salvage plans which file data of a dead kernel is to be written, and
// promises that every byte in the plan was checked to belong to its file and to be
// unsaved, and that everything left out is named with its reason.
//
// # Caveats
//
// A plan made by Of covers the data, sizes and times of regular files: names and directories
// are left to the journal. A plan made by ForDisk, for XFS and btrfs, covers those as well (Metadata).
// A disk must be compared with memory (Check) before anything is written to it.
package salvage

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"sync"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
)

// Plan is what is to be written into one file system.
type Plan struct {
	Kernel string // its release
	Super  pagecache.Superblock
	Ext4   pagecache.Ext4 // as in memory, for comparison with the disk; zero for others
	Files  []File         // in the order of inode numbers
	// Refused is the data that is in memory and not in the plan.
	Refused []*pagecache.Refusal
	// Faults are errors of walks: what they would have found is not in the plan,
	// and not in Refused either.
	Faults []error
	// Deleted counts unsaved files without a name, for which nothing is written.
	Deleted int

	xfsRecords []pagecache.WrittenRecord // the last of its log
	xfsLast    uint64                    // the LSN of the last one
	btrfsSuper []byte
	// btrfsCommitted is the transaction that the dead kernel knew to be on the disk.
	btrfsCommitted uint64
	btrfsLogging   bool // an fsync was writing the superblock

	cache    *pagecache.Cache
	mem      ram.Memory
	staged   int64     // bytes
	segments []segment // of all runs, in the order of the staging area
}

// File is what is to be done about one file.
type File struct {
	Ino        addr.Ino
	Generation uint32
	Mode       uint16 // type and permissions
	UID, GID   uint32
	NLink      uint32
	Size       int64 // in bytes, to be set after the runs are written
	Atime      time.Time
	Mtime      time.Time
	Ctime      time.Time
	Flags      uint32      // pagecache.Flag*
	Path       string      // from the top of the file system; empty if unknown
	Runs       []Run       // ascending; none if only size, times or owner differ
	Holes      []addr.Span // outside of the runs, to be punched, ascending
	Cut        bool        // blocks beyond its end are to be freed
	Metadata   *Metadata   // of plans made by ForDisk for XFS and btrfs, whose log is not finished; else nil
}

// Run is a stretch of unsaved bytes of a file, already clipped to its size.
type Run struct {
	addr.Span
	// Staged is the offset of the run's first byte in the staging area, a
	// multiple of addr.PageSize.
	Staged int64
	// Direct says that the run starts at a multiple of addr.PageSize, and also
	// ends at one or at the end of the file. Such a run is written with WriteLen
	// bytes, after which the file's size is set. Any other run must be written with
	// its exact length: the bytes behind it in the staging area are not the file's.
	Direct bool

	segments []segment
}

// segment is a piece of a run, in physical memory or read from the disk.
type segment struct {
	phys   addr.Phys
	disk   []byte // nil if it is in memory
	n      int64
	staged int64 // offset in the staging area
	pad    int64 // zeros that follow it there
}

// WriteLen returns how many bytes to write at Off: rounded up to addr.PageSize for
// direct I/O, where that is possible.
func (r *Run) WriteLen() int64 {
	if r.Direct {
		return addr.AlignUp(r.Len())
	}
	return r.Len()
}

// New plans the salvage of the file system with a UUID.
func New(k *kernel.Kernel, id pagecache.UUID) (*Plan, error) {
	c, err := pagecache.Open(k)
	if err != nil {
		return nil, fmt.Errorf("plan salvage: %w", err)
	}
	s, err := c.Superblock(id)
	if err != nil {
		return nil, fmt.Errorf("plan salvage: %w", err)
	}
	return Of(c, s)
}

// ErrUnsupported says that a file system is of a type that is not understood.
var ErrUnsupported = errors.New("file system type is not supported")

// plain are file system types that need nothing but what all types have in
// common to be understood.
var plain = []string{"xfs", "btrfs", "vfat"}

// Of plans the salvage of a file system. If its type is not understood, the error
// wraps ErrUnsupported.
func Of(c *pagecache.Cache, s *pagecache.Superblock) (*Plan, error) {
	p := &Plan{Kernel: c.Kernel().Release, Super: *s, cache: c, mem: c.Kernel().Memory()}
	walk := c.Dirty
	switch {
	case s.HasBuffers():
		ext4, err := c.Ext4(s)
		if err != nil {
			return nil, fmt.Errorf("plan salvage of %s: %w", s.ID, err)
		}
		p.Ext4 = *ext4
		if ext4.Journal == nil {
			walk = c.DirtyOrLocked
		}
	case s.InMemory():
		walk = c.Inodes // nothing of it was ever saved
	case !slices.Contains(plain, s.Type):
		return nil, fmt.Errorf("plan salvage of %s: %s: %w", s.ID, s.Type, ErrUnsupported)
	}
	var inodes []*pagecache.Inode
	for i, err := range walk(s) {
		if err != nil {
			p.note(err)
			continue
		}
		inodes = append(inodes, i)
	}
	slices.SortFunc(inodes, func(a, b *pagecache.Inode) int {
		return int(min(1, max(-1, int64(a.Ino)-int64(b.Ino))))
	})
	p.addAll(c, s, inodes)
	p.stage()
	return p, nil
}

// note records why something is not in the plan.
func (p *Plan) note(err error) {
	var refusal *pagecache.Refusal
	if errors.As(err, &refusal) {
		p.Refused = append(p.Refused, refusal)
		return
	}
	p.Faults = append(p.Faults, err)
}

// noteOf is note for what a walk of one file yields; a file with an empty path is known by its number.
func (p *Plan) noteOf(path string, err error) {
	var refusal *pagecache.Refusal
	if errors.As(err, &refusal) {
		refusal.Path = path
	}
	p.note(err)
}

// addAll plans for each inode, on all CPUs: each CPU takes one stretch of the inodes.
func (p *Plan) addAll(c *pagecache.Cache, s *pagecache.Superblock, inodes []*pagecache.Inode) {
	workers := max(1, min(runtime.GOMAXPROCS(0), len(inodes)/64))
	parts := make([]Plan, workers)
	var wg sync.WaitGroup
	for w := range workers {
		mine := inodes[len(inodes)*w/workers : len(inodes)*(w+1)/workers]
		wg.Go(func() {
			part := &parts[w]
			*part = p.empty()
			part.Files = make([]File, 0, len(mine))
			paths := c.Paths(s)
			for _, i := range mine {
				part.add(c, s, i, paths)
			}
		})
	}
	wg.Wait()
	for _, part := range parts {
		p.Files = append(p.Files, part.Files...)
		p.Refused = append(p.Refused, part.Refused...)
		p.Faults = append(p.Faults, part.Faults...)
		p.Deleted += part.Deleted
	}
}

// empty is a plan for the same file system, without files.
func (p *Plan) empty() Plan { return Plan{Super: p.Super, Ext4: p.Ext4} }

// add plans for one inode.
func (p *Plan) add(c *pagecache.Cache, s *pagecache.Superblock, i *pagecache.Inode, paths *pagecache.Paths) {
	if !i.Regular() {
		return
	}
	if i.Deleted() {
		p.Deleted++
		return
	}
	f := fileOf(i)
	// A file without a name in memory is found by its inode number.
	f.Path, _ = paths.Of(i)
	pieces := c.Unsaved
	if s.InMemory() {
		pieces = c.Held
	}
	for piece, err := range pieces(s, i) {
		if err != nil {
			p.noteOf(f.Path, err)
			continue
		}
		f.take(piece)
	}
	if why := p.unfit(i); why != 0 {
		if len(f.Runs) > 0 {
			p.note(&pagecache.Refusal{Inode: i.Ino, Path: f.Path, Reason: why})
		}
		return
	}
	p.Files = append(p.Files, f)
}

func fileOf(i *pagecache.Inode) File {
	return File{
		Ino: i.Ino, Generation: i.Generation, Mode: i.Mode, UID: i.UID, GID: i.GID, NLink: i.NLink,
		Size: i.Size, Atime: i.Atime, Mtime: i.Mtime, Ctime: i.Ctime, Flags: i.Flags,
	}
}

// unfit says why a file must not be written to, or 0.
func (p *Plan) unfit(i *pagecache.Inode) pagecache.Reason {
	switch {
	case i.Ino < p.Super.FirstFile() || p.Ext4.Internal(i):
		return pagecache.Reserved
	case i.Flags&pagecache.FlagEncrypted != 0:
		return pagecache.Encrypted
	case i.Flags&pagecache.FlagVerity != 0:
		return pagecache.Verity
	}
	return 0
}

// spans returns the spans of the file's runs.
func (f *File) spans() []addr.Span {
	var out []addr.Span
	for _, r := range f.Runs {
		out = append(out, r.Span)
	}
	return out
}

// spanned is a segment, and the part of its file that it has.
type spanned struct {
	addr.Span
	segment
}

// take adds a piece to the file's runs.
func (f *File) take(piece pagecache.Piece) {
	if span := piece.Span.Clip(f.Size); span.Len() > 0 {
		f.add(spanned{span, segment{phys: piece.Phys, n: span.Len()}})
	}
}

// add adds a segment behind the file's runs, or to the last of them.
func (f *File) add(s spanned) {
	direct := s.Off%addr.PageSize == 0 && (s.End%addr.PageSize == 0 || s.End == f.Size)
	if n := len(f.Runs); n > 0 {
		last := &f.Runs[n-1]
		if last.End == s.Off && last.Direct == direct {
			last.End = s.End
			last.append(s.segment)
			return
		}
	}
	f.Runs = append(f.Runs, Run{Span: s.Span, Direct: direct, segments: []segment{s.segment}})
}

// Physical yields the pieces of physical memory that hold the run, in its order,
// and their lengths in bytes; none for what was read from the disk.
func (r *Run) Physical() iter.Seq2[addr.Phys, int64] {
	return func(yield func(addr.Phys, int64) bool) {
		for _, s := range r.segments {
			if s.disk == nil && !yield(s.phys, s.n) {
				return
			}
		}
	}
}

func (r *Run) append(seg segment) {
	last := &r.segments[len(r.segments)-1]
	if last.disk == nil && seg.disk == nil && last.phys+addr.Phys(last.n) == seg.phys {
		last.n += seg.n
		return
	}
	r.segments = append(r.segments, seg)
}

// stage gives every run its offset in the staging area.
func (p *Plan) stage() {
	count := 0
	p.staged = 0
	for i := range p.Files {
		for j := range p.Files[i].Runs {
			count += len(p.Files[i].Runs[j].segments)
		}
	}
	p.segments = make([]segment, 0, count)
	for i := range p.Files {
		for j := range p.Files[i].Runs {
			p.stageRun(&p.Files[i].Runs[j])
		}
	}
}

// stageRun also moves the run's segments next to those of all others, so that
// Gather reads them as one list and not from all over memory.
func (p *Plan) stageRun(run *Run) {
	run.Staged = p.staged
	at, first := p.staged, len(p.segments)
	for _, s := range run.segments {
		s.staged = at
		at += s.n
		p.segments = append(p.segments, s)
	}
	p.staged = addr.AlignUp(at)
	p.segments[len(p.segments)-1].pad = p.staged - at
	run.segments = p.segments[first:len(p.segments):len(p.segments)]
}

// GiveUp empties the plan, and returns the files that were in it. Unsaved data belongs
// with metadata that the journal had not committed: without that metadata, a file would
// get only a part of its new state.
func (p *Plan) GiveUp() []File {
	files := p.Files
	p.Files, p.staged, p.segments = nil, 0, nil
	return files
}

// Remove takes files out of the plan, by inode number: they are on the disk already, completely, or they
// are gone. It must be called before Restore and Gather.
func (p *Plan) Remove(files map[addr.Ino]struct{}) {
	if len(files) == 0 {
		return
	}
	p.Files = slices.DeleteFunc(p.Files, func(f File) bool {
		_, committed := files[f.Ino]
		return committed
	})
	p.stage()
}

// Restore plans to write also those bytes of a file that are not unsaved but that the disk
// may lose. It must be called before Gather.
func (p *Plan) Restore(c *pagecache.Cache, s *pagecache.Superblock, r journal.AfterMount) {
	i := r.Inode
	path, _ := c.Paths(s).Of(i)
	if r.Lost != nil {
		p.note(&pagecache.Refusal{Inode: i.Ino, Path: path, Reason: pagecache.Partial, Cause: r.Lost})
	}
	if !i.Regular() {
		return
	}
	n := slices.IndexFunc(p.Files, func(f File) bool { return f.Ino == i.Ino })
	if n < 0 {
		f := fileOf(i)
		f.Path = path
		n, p.Files = len(p.Files), append(p.Files, f)
	}
	f := &p.Files[n]
	f.Holes, f.Cut = r.Holes, r.Cut
	wanted := slices.Concat(f.spans(), r.Filled)
	slices.SortFunc(wanted, func(a, b addr.Span) int { return cmp.Compare(a.Off, b.Off) })
	f.Runs = nil
	for piece, err := range c.All(s, i) {
		if err != nil {
			continue // noted when the plan was made
		}
		for len(wanted) > 0 && wanted[0].End <= piece.Off {
			wanted = wanted[1:]
		}
		at := piece.Off
		for _, w := range wanted {
			if w.Off >= piece.End {
				break
			}
			part := overlap(piece.Span, w)
			if part.Off = max(part.Off, at); part.Len() > 0 {
				f.take(pagecache.Piece{Span: part, Phys: piece.Phys + addr.Phys(part.Off-piece.Off)})
				at = part.End
			}
		}
	}
	p.stage()
}
