package journal

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/pagecache"
)

// ErrMidUpdate says that the extent tree of a file is mid-update, and that blocks of the file may
// be lost. An extent is split in two steps, and others are moved up in their node before the node
// gets its checksum (fs/ext4/extents.c, ext4_split_extent_at,
// ext4_ext_insert_extent): e2fsck cannot tell what was there before.
var ErrMidUpdate = errors.New("its extent tree was mid-update, and the page cache does not have the data that this may lose")

// AfterMount is what a file needs once the file system is mounted, whatever e2fsck or
// the replay of the log did to it before: its extent tree was mid-update, it was being
// truncated or moved out of its inode, or the replay overwrites it. The spans are whole blocks, and may
// reach beyond the end of the file.
type AfterMount struct {
	Inode  *pagecache.Inode
	Filled []addr.Span // to be written from memory; they may overlap
	Holes  []addr.Span // to be punched, ascending
	Cut    bool        // blocks beyond its end are to be freed
	// Lost says why more data may be lost; nil if none is. With a journal the last
	// commit is refused then.
	Lost error
}

// trees returns the block mapping of a file without and with a change.
type trees func(addr.Ino) (*audit.Trees, error)

var errTorn = errors.New("a node of its extent tree has a wrong checksum: it was being written")

// treesOn returns the trees of files on a disk without a journal, before and after blocks are written to it. Nothing orders
// what a kernel writes there: where the disk contradicts itself, the file counts as one that had no blocks before.
func treesOn(disk io.ReaderAt, changed map[addr.Block][]byte) trees {
	open := sync.OnceValues(func() (*audit.Mapper, error) { return audit.NewMapper(disk, changed) })
	return func(n addr.Ino) (*audit.Trees, error) {
		files, err := open()
		if err != nil {
			return nil, err
		}
		found, err := files.Tree(n)
		if err != nil {
			found, err = treeWith(disk, changed, n)
		}
		if err == nil && len(found.Torn) > 0 {
			return nil, errTorn
		}
		return found, err
	}
}

// treeWith returns the block mapping of a file with a change, and none for the time before it.
func treeWith(disk io.ReaderAt, changed map[addr.Block][]byte, n addr.Ino) (*audit.Trees, error) {
	with, err := (&change{before: disk, blocks: changed}).after()
	if err != nil {
		return nil, err
	}
	files, err := audit.NewMapper(with, nil)
	if err != nil {
		return nil, err
	}
	found, err := files.Tree(n)
	if err != nil {
		return nil, err
	}
	found.Old, found.Touched = nil, true
	return found, nil
}

// midUpdate checks that no file loses data because its extent tree is mid-update. Such a
// file is locked (i_data_sem), and therefore in memory. The update does not touch blocks that are
// mapped as before. Data that may be lost is an error if strict is set, and otherwise
// reported.
func (f *finisher) midUpdate(where trees, strict bool) error {
	for i, err := range f.cache.MidUpdate(f.super) {
		if refusal := (*pagecache.Refusal)(nil); errors.As(err, &refusal) {
			continue // the plan of the files reports it
		}
		if err != nil {
			return fmt.Errorf("find extent trees that are mid-update: %w", err)
		}
		if _, gone := f.report.Gone[i.Ino]; gone {
			continue // it was being deleted, and is free now
		}
		dir := i.Mode&pagecache.ModeType == pagecache.ModeDir
		if !dir && !i.Regular() || i.Deleted() || i.Ino < firstInode && i.Ino != rootInode {
			continue
		}
		p := fileMap{size: i.Size, block: int64(f.super.BlockSize), dir: dir, zeroed: f.zeroed}
		if p.size > p.block*math.MaxUint32 {
			return fmt.Errorf("%w: inode %d has %d bytes", ErrDamaged, i.Ino, i.Size)
		}
		if p.trees, err = where(i.Ino); err == nil && !p.trees.Touched {
			continue
		}
		if !dir && i.Flags&unplain == 0 {
			p.filled, p.zeros, p.unread = f.known(i)
		}
		p.complete = complete(p.trees, p.block, i.Sectors)
		m := AfterMount{Inode: i}
		if at := p.divide(&m); at < p.size {
			m.Lost = fmt.Errorf("inode %d: byte %d: %w", i.Ino, at, ErrMidUpdate)
			if err != nil {
				m.Lost = fmt.Errorf("%w: %w", m.Lost, err)
			}
		}
		if m.Lost != nil && strict {
			return m.Lost
		}
		if m.Lost != nil || len(m.Filled)+len(m.Holes) > 0 {
			was := f.afterMount(i)
			was.Filled, was.Holes, was.Lost = append(was.Filled, m.Filled...), m.Holes, m.Lost
		}
	}
	return nil
}

// zeroed reports whether a block has only zeros on the disk as a recovery without the last commit leaves it.
func (f *finisher) zeroed(at addr.Block) bool {
	disk := io.ReaderAt(f.disk)
	if f.recovered != nil {
		disk = f.recovered.before
	}
	b := make([]byte, f.super.BlockSize)
	_, err := disk.ReadAt(b, int64(at)*int64(len(b)))
	return err == nil && len(bytes.Trim(b, "\x00")) == 0
}

// bare returns the metadata that is to be written to a file system without a journal, as a change.
func (f *finisher) bare() (*change, error) {
	size := int64(f.super.BlockSize)
	c := &change{txn: &jbd2.Transaction{}, before: f.disk, blocks: make(map[addr.Block][]byte)}
	for _, b := range f.data {
		if b.ino != 0 {
			continue
		}
		view, err := f.mem.View(b.phys, int(b.len))
		if err != nil {
			return nil, fmt.Errorf("read memory: %w", err)
		}
		for ; int64(len(view)) >= size; view = view[size:] {
			home := addr.Block((b.disk + b.len - int64(len(view))) / size)
			c.blocks[home] = view[:size]
			c.txn.Blocks = append(c.txn.Blocks, jbd2.Block{Home: home, Data: view[:size]})
		}
	}
	return c, nil
}

var errCommitted = errors.New("an earlier attempt has committed the update")

// midUpdateAgain does what midUpdate, keepOrphans and checkInline do, for a rescue whose transaction is
// already on the disk: the state before it is no longer known.
func (f *finisher) midUpdateAgain() error {
	err := f.midUpdate(func(addr.Ino) (*audit.Trees, error) { return nil, errCommitted }, false)
	if err != nil {
		return err
	}
	for i, err := range f.cache.Inodes(f.super) {
		if err == nil && i.Writing && truncatable(i) {
			f.afterMount(i).Cut = true
		}
	}
	return f.rewriteAgain()
}

// known returns what is known of a file without its extent tree: the bytes that memory has, and
// those that otherwise read as zeros. unread says that memory has more bytes, which cannot be read.
func (f *finisher) known(i *pagecache.Inode) (filled, zeros []addr.Span, unread bool) {
	for p, err := range f.cache.All(f.super, i) {
		if err != nil {
			unread = true
			continue
		}
		if (p.Off|p.End)%int64(f.super.BlockSize) != 0 {
			return nil, nil, true
		}
		filled = append(filled, p.Span)
	}
	zeros, err := f.cache.Zeros(f.super, i)
	if err != nil {
		zeros = nil // nothing is known
	}
	return filled, zeros, unread
}

// fileMap is what is known of a file, in particular its block mapping.
type fileMap struct {
	size, block   int64 // in bytes
	dir           bool
	trees         *audit.Trees          // nil if they contradict themselves
	filled, zeros []addr.Span           // of a regular file, ascending
	unread        bool                  // there are pages of it that are not in filled
	zeroed        func(addr.Block) bool // whether a block of the disk is known to have only zeros
	// complete says that what the tree does not map is a hole.
	complete bool
}

// complete reports whether what a file's mapping does not map is a hole: it has as many blocks as the file has according to memory, or
// it is of indirect blocks, where nothing is moved, and new ones are linked by a single store when all is in them
// (fs/ext4/indirect.c, ext4_splice_branch). block is the size of a block in bytes.
func complete(t *audit.Trees, block int64, sectors uint64) bool {
	return t != nil && (t.Indirect || t.Blocks*uint64(block/512) == sectors)
}

// divide puts what is known of the blocks that are not mapped as before into m. It returns the
// first byte of which nothing is known, or the size.
func (p *fileMap) divide(m *AfterMount) int64 {
	lost := p.size
	for at := int64(0); at < p.size; {
		filled, zeros := p.blocks(covered(p.filled, at)), p.blocks(covered(p.zeros, at))
		end := p.kept(at)
		switch {
		case end > at:
		case filled > at:
			end = filled
			m.Filled = append(m.Filled, addr.Span{Off: at, End: end})
		case zeros > at:
			// A page in the hole takes precedence.
			end = min(zeros, p.next(p.filled, at))
			m.Holes = append(m.Holes, addr.Span{Off: at, End: end})
		default:
			if blank := p.blank(at); blank > at {
				end = min(blank, p.next(p.filled, at))
				break
			}
			lost = min(lost, at)
			end = min(p.next(p.filled, at), p.next(p.zeros, at))
			if p.trees != nil {
				end = min(end, p.nextRun(p.trees.New, at))
			}
		}
		at = end
	}
	return lost
}

// blocks rounds a position down to whole blocks.
func (p *fileMap) blocks(at int64) int64 { return at &^ (p.block - 1) }

// next returns where the first span after a block begins, rounded down to whole blocks.
func (p *fileMap) next(spans []addr.Span, at int64) int64 {
	n, _ := slices.BinarySearchFunc(spans, at+p.block, func(s addr.Span, at int64) int { return cmp.Compare(s.Off, at) })
	if n == len(spans) {
		return p.size
	}
	return max(p.blocks(spans[n].Off), at+p.block)
}

// nextRun is next for runs of blocks.
func (p *fileMap) nextRun(runs []ext4.Run, at int64) int64 {
	block := uint32(at/p.block) + 1
	n, _ := slices.BinarySearchFunc(runs, block, func(r ext4.Run, b uint32) int { return cmp.Compare(r.Logical, b) })
	if n == len(runs) {
		return p.size
	}
	return int64(runs[n].Logical) * p.block
}

// kept returns the end of the part of a file that begins with a block, given by its first byte, and is
// mapped as before; 0 if that block is not.
func (p *fileMap) kept(at int64) int64 {
	if p.trees == nil {
		return 0
	}
	is := runAt(p.trees.New, at/p.block)
	if p.dir { // it has no holes, and each of its blocks says whose it is
		if is.Unwritten {
			return 0
		}
		return at + int64(is.Length)*p.block
	}
	was := runAt(p.trees.Old, at/p.block)
	if p.complete && is.Length == 0 && was.Length == 0 {
		return min(p.nextRun(p.trees.New, at), p.nextRun(p.trees.Old, at))
	}
	if is.Physical != was.Physical || is.Unwritten != was.Unwritten {
		return 0
	}
	return at + int64(min(is.Length, was.Length))*p.block
}

// blank returns the end of the part of a file that begins with a block, given by its first byte, and reads as zeros in any state of
// the update; 0 if that is not known. No page has it. A kernel marks an extent as unwritten only if no data is in it; but it
// marks one as written before it has told which part of it is, and after it has zeroed all of it on the disk itself
// (fs/ext4/extents.c, ext4_split_extent_at, ext4_ext_zeroout).
func (p *fileMap) blank(at int64) int64 {
	if p.trees == nil || p.dir || p.unread {
		return 0
	}
	is, was := runAt(p.trees.New, at/p.block), runAt(p.trees.Old, at/p.block)
	switch {
	case is.Unwritten && p.complete && was.Length == 0:
		return min(at+int64(is.Length)*p.block, p.nextRun(p.trees.Old, at))
	case is.Unwritten && p.complete && was.Unwritten:
		return at + int64(min(is.Length, was.Length))*p.block
	case is.Length > 0 && !is.Unwritten && was.Unwritten && is.Physical == was.Physical && p.zeroed(is.Physical):
		return at + p.block
	}
	return 0
}

// runAt returns an ascending run from a block of the file on; its length is 0 if the block is in a hole.
func runAt(runs []ext4.Run, block int64) ext4.Run {
	n, _ := slices.BinarySearchFunc(runs, block, func(r ext4.Run, b int64) int {
		return cmp.Compare(int64(r.Logical)+int64(r.Length), b+1)
	})
	if n == len(runs) || int64(runs[n].Logical) > block {
		return ext4.Run{}
	}
	return runs[n].Skip(uint32(block) - runs[n].Logical)
}

// covered returns the end of the span that contains a byte, among ascending ones; 0 if none does.
func covered(spans []addr.Span, at int64) int64 {
	n, _ := slices.BinarySearchFunc(spans, at, func(s addr.Span, at int64) int { return cmp.Compare(s.End, at+1) })
	if n == len(spans) || spans[n].Off > at {
		return 0
	}
	return spans[n].End
}
