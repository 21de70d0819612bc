package journal

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/placement"
)

// unplaced is a file that waits for a place, with the places that the rest of it has.
type unplaced struct {
	inode  *pagecache.Inode
	blocks []pagecache.UnsavedBlock
	zero   map[int]bool // by index of clean blocks: they are all zeros
}

// waiting returns the files that have no place for all of their unsaved data. If something about a
// file is not known, that is why it gets no place. A file that is to be truncated gets none.
func (f *finisher) waiting(c *change) ([]unplaced, error) {
	orphans, err := audit.Truncating(c.before, c.blocks)
	if err != nil {
		return nil, err
	}
	truncated := make(map[addr.Ino]bool, len(orphans))
	for _, i := range orphans {
		truncated[i.Number] = true
	}
	var out []unplaced
	for _, i := range f.open {
		if _, whole := f.whole[i.Ino]; whole {
			continue
		}
		blocks, err := f.dev.UnsavedBlocks(i)
		if err == nil && truncated[i.Ino] {
			err = fmt.Errorf("%w: it was being truncated", placement.ErrRefused)
		}
		if err == nil && slices.ContainsFunc(f.torn, func(s audit.Slot) bool { return s.Ino == i.Ino }) {
			err = fmt.Errorf("%w: its inode was being written", placement.ErrRefused)
		}
		var zero map[int]bool
		if err == nil {
			zero, err = f.zeros(i, blocks)
		}
		if err != nil {
			f.report.Placement.Refused[i.Ino] = err
			continue
		}
		out = append(out, unplaced{i, blocks, zero})
	}
	slices.SortFunc(out, func(a, b unplaced) int { return cmp.Compare(a.inode.Ino, b.inode.Ino) })
	for n := 1; n < len(out); n++ {
		if out[n].inode.Ino == out[n-1].inode.Ino {
			return nil, fmt.Errorf("%w: inode %d is in memory twice", ErrDamaged, out[n].inode.Ino)
		}
	}
	return out, nil
}

func filesOf(waiting []unplaced) []placement.File {
	files := make([]placement.File, len(waiting))
	for n, u := range waiting {
		files[n] = u.file()
	}
	return files
}

// file returns a file as it is to be placed.
func (u *unplaced) file() placement.File {
	i := u.inode
	f := placement.File{Ino: i.Ino, Generation: i.Generation, Size: i.Size, Atime: i.Atime, Mtime: i.Mtime, Ctime: i.Ctime}
	for n, b := range u.blocks {
		s := placement.Stretch{Span: b.Span, Disk: b.Disk, Mapped: b.Mapped, Kept: b.Clean, Zero: b.Clean && u.zero[n]}
		if n := len(f.Unsaved); n > 0 {
			last := &f.Unsaved[n-1]
			if last.End == s.Off && last.Mapped == s.Mapped && last.Kept == s.Kept && last.Zero == s.Zero && (!s.Mapped || last.Disk+last.Len() == s.Disk) {
				last.End = s.End
				continue
			}
		}
		f.Unsaved = append(f.Unsaved, s)
	}
	return f
}

// zeros returns which of the clean blocks of a file are all zeros up to the end of the file.
func (f *finisher) zeros(i *pagecache.Inode, blocks []pagecache.UnsavedBlock) (map[int]bool, error) {
	var out map[int]bool
	for n, b := range blocks {
		if !b.Clean {
			continue
		}
		view, err := f.mem.View(b.Phys, int(min(b.Len(), i.Size-b.Off)))
		if err != nil {
			return nil, fmt.Errorf("read memory: %w", err)
		}
		if len(bytes.Trim(view, "\x00")) == 0 {
			if out == nil {
				out = make(map[int]bool)
			}
			out[n] = true
		}
	}
	return out, nil
}

// blocksAt appends the unsaved blocks of a file to data, at their places. Blocks and pieces cover the
// same bytes.
func (u *unplaced) blocksAt(data []block, pieces []placement.Piece) ([]block, error) {
	blocks := u.blocks
	for _, p := range pieces {
		for p.Len() > 0 {
			for len(blocks) > 0 && blocks[0].End <= p.Off {
				blocks = blocks[1:]
			}
			if len(blocks) == 0 || blocks[0].Off > p.Off {
				return nil, fmt.Errorf("%w: inode %d: a block was allocated for byte %d, which is not dirty", ErrDamaged, u.inode.Ino, p.Off)
			}
			from := p.Off - blocks[0].Off
			n := min(p.Len(), blocks[0].Len()-from, chunk)
			data = append(data, block{
				ino: u.inode.Ino, disk: p.Disk, phys: blocks[0].Phys + addr.Phys(from), len: n, used: min(n, u.inode.Size-p.Off), free: p.Free,
			})
			p.Off, p.Disk = p.Off+n, p.Disk+n
		}
	}
	return data, nil
}
