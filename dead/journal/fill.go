package journal

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/pagecache"
)

// ErrUnfilled says that a block was being allocated to a file, which would show what another file left
// there, and that memory does not tell what belongs into the block.
var ErrUnfilled = errors.New("a block was being allocated to it, and memory does not have the data that belongs there")

// fill adds to the transaction the content of blocks that were allocated to a file and not filled yet.
// Without delayed allocation, or where that does not give unwritten extents, a task that writes
// into a hole first allocates a block, and marks it dirty when it has copied its data
// (fs/ext4/inode.c, ext4_write_begin, ext4_write_end). In between all metadata agree, and no commit
// of the kernel can happen, because the handle is open. A file that is being written in this way
// is locked, or mapped by a program (ext4_page_mkwrite).
func (f *finisher) fill(c *change) error {
	for i := range f.written() {
		if err := f.fillFile(c, c.tree, i); err != nil {
			return fmt.Errorf("inode %d: %w", i.Ino, err)
		}
	}
	return nil
}

// fillBare is fill for a file system without a journal. The blocks that it fills are written with the rest; a file
// whose content memory does not tell is reported.
func (f *finisher) fillBare(c *change, where trees) {
	metadata := len(c.txn.Blocks)
	for i := range f.written() {
		if err := f.fillFile(c, where, i); err != nil {
			m := f.afterMount(i)
			m.Lost = errors.Join(m.Lost, fmt.Errorf("inode %d: %w", i.Ino, err))
		}
	}
	f.takeFilled(c.txn.Blocks[metadata:])
}

// takeFilled adds filled blocks to those that are written.
func (f *finisher) takeFilled(blocks []jbd2.Block) {
	for _, b := range blocks {
		size := int64(len(b.Data))
		f.fills = append(f.fills, block{disk: int64(b.Home) * size, len: size, used: size, data: b.Data})
	}
}

// written yields the files that some task may have been writing.
func (f *finisher) written() iter.Seq[*pagecache.Inode] {
	return func(yield func(*pagecache.Inode) bool) {
		for i, err := range f.cache.Inodes(f.super) {
			if err != nil || !i.Writing && !i.Shared || !i.Regular() || i.Deleted() || i.Ino < firstInode {
				continue // the plan of the files reports it
			}
			if !yield(i) {
				return
			}
		}
	}
}

func (f *finisher) fillFile(c *change, where trees, i *pagecache.Inode) error {
	l := filler{change: c, block: int64(f.super.BlockSize), size: i.Size, view: f.mem.View, opaque: i.Flags&unplain != 0}
	within := []addr.Span{{Off: 0, End: math.MaxInt64}}
	trees, unknown := where(i.Ino)
	if unknown == nil {
		l.given = given(trees.Old, trees.New)
		within = f.spans(l.given)
	}
	if unknown == nil && f.Journal == nil {
		l.fresh = given(nil, trees.New)
		within = f.spans(l.fresh)
	}
	blocks, err := f.dev.Filling(i, within)
	if err != nil || len(blocks) == 0 {
		return err
	}
	anew := f.anew(i)
	blocks = slices.DeleteFunc(blocks, func(b pagecache.FillingBlock) bool {
		return slices.ContainsFunc(anew, func(s addr.Span) bool { return s.Off <= b.Off && b.End <= s.End })
	})
	if len(blocks) > 0 && unknown != nil {
		return fmt.Errorf("%w: %w", ErrUnfilled, unknown)
	}
	for _, b := range blocks {
		if err := l.fill(b); err != nil {
			return fmt.Errorf("byte %d: %w", b.Off, err)
		}
	}
	return nil
}

// anew returns the bytes of a file that are written, or punched, whatever the disk has of them: after
// the mount at the latest.
func (f *finisher) anew(i *pagecache.Inode) (out []addr.Span) {
	for p, err := range f.cache.Unsaved(f.super, i) {
		if err == nil {
			out = append(out, p.Span)
		}
	}
	for _, m := range f.report.AfterMount {
		if m.Inode.Ino == i.Ino {
			out = slices.Concat(out, m.Filled, m.Holes)
		}
	}
	return out
}

// spans returns the bytes of a file that ascending runs map.
func (f *finisher) spans(runs []ext4.Run) []addr.Span {
	size := int64(f.super.BlockSize)
	out := make([]addr.Span, len(runs))
	for n, r := range runs {
		out[n] = addr.Span{Off: int64(r.Logical) * size, End: (int64(r.Logical) + int64(r.Length)) * size}
	}
	return out
}

// given returns the blocks with content that a file has now, and did not have before. Unwritten says
// that it had the block before, as unwritten.
func given(old, now []ext4.Run) (out []ext4.Run) {
	for _, r := range now {
		for left := !r.Unwritten; left; {
			for len(old) > 0 && uint64(old[0].Logical)+uint64(old[0].Length) <= uint64(r.Logical) {
				old = old[1:]
			}
			piece, had := r, false
			if len(old) > 0 && old[0].Logical > r.Logical {
				piece.Length = min(r.Length, old[0].Logical-r.Logical)
			} else if len(old) > 0 {
				was := old[0].Skip(r.Logical - old[0].Logical)
				piece.Length = min(r.Length, was.Length)
				had = was.Physical == r.Physical && !was.Unwritten
				piece.Unwritten = was.Physical == r.Physical && was.Unwritten
			}
			if !had {
				out = append(out, piece)
			}
			if left = piece.Length < r.Length; left {
				r = r.Skip(piece.Length)
			}
		}
	}
	return out
}

// filler fills blocks of one file.
type filler struct {
	*change
	block  int64      // of the file system, in bytes
	size   int64      // of the file, in bytes
	given  []ext4.Run // the blocks it was given, see the function
	fresh  []ext4.Run // without a journal: all blocks with content that it has
	view   func(addr.Phys, int) ([]byte, error)
	opaque bool // its content on the disk is not what memory has
}

// fill puts the content of a block into the transaction, if the block was just given to the file.
func (l *filler) fill(b pagecache.FillingBlock) error {
	size := l.block
	run := runAt(l.given, b.Off/size)
	if l.fresh != nil && b.Fresh && b.Disk >= 0 { // then the disk may already have what allocated the block, and its bitmap bit
		run = runAt(l.fresh, b.Off/size)
		run.Unwritten = true
	}
	if run.Length == 0 {
		return nil
	}
	home := run.Physical
	if slices.ContainsFunc(l.txn.Blocks, func(t jbd2.Block) bool { return t.Home == home }) {
		return nil // data=journal: the transaction has its content
	}
	if err := l.may(b, run); err != nil {
		return err
	}
	data := make([]byte, size)
	if used := max(0, min(size, l.size-b.Off)); b.Filled && used > 0 {
		view, err := l.view(b.Phys, int(used))
		if err != nil {
			return fmt.Errorf("read memory: %w", err)
		}
		copy(data, view)
	}
	return l.replace(home, data)
}

// may says why a block must not be filled. A block that was not free before is not the one that
// the kernel had just allocated.
func (l *filler) may(b pagecache.FillingBlock, run ext4.Run) error {
	size := l.block
	place := int64(run.Physical) * size
	switch {
	case b.Len() != size:
		return fmt.Errorf("%w: its buffer has %d bytes", ErrUnfilled, b.Len())
	case l.opaque:
		return fmt.Errorf("%w: it is encrypted, or sealed by fs-verity", ErrUnfilled)
	case b.Disk >= 0 && b.Disk != place:
		return fmt.Errorf("%w: its buffer is mapped to byte %d of the device, but the block is at byte %d", ErrUnfilled, b.Disk, place)
	case !b.Filled && !(b.Fresh && b.Disk == place) && b.Off < l.size: // behind its end a file has nothing, whoever gave it the block
		return fmt.Errorf("%w: its buffer is neither filled nor BH_New", ErrUnfilled)
	case run.Unwritten:
		return nil
	}
	free, err := audit.Free(l.before, run.Physical)
	if err == nil && !free {
		err = fmt.Errorf("%w: block %d was in use before", ErrUnfilled, run.Physical)
	}
	return err
}
