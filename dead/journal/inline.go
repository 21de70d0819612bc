package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/pagecache"
)

// mend rewrites blocks of files into which the log has put older content.
// With inline data ext4 logs the first block of a file that grows out of its inode
// as if it were metadata (fs/ext4/inline.c, ext4_convert_inline_data_nolock). The file
// goes on in its own pages, and frees the block without a revoke record, like all
// data (fs/ext4/extents.c, get_default_free_blocks_flags): a checkpoint or a
// recovery writes the old version over this file, or over the next owner of the block.
// The dead kernel's own page, which programs were served, has what belongs there.
func (f *finisher) mend(replayed map[addr.Block]struct{}) error {
	mended := false
	buf := make([]byte, f.super.BlockSize)
	for s := range f.suspects(replayed) {
		if _, err := f.disk.ReadAt(buf, s.disk); err != nil {
			return fmt.Errorf("mend inode %d: %w", s.inode.Ino, err)
		}
		if bytes.Equal(buf[:len(s.data)], s.data) {
			continue
		}
		clear(buf[copy(buf, s.data):])
		if _, err := f.disk.WriteAt(buf, s.disk); err != nil {
			return fmt.Errorf("mend inode %d: %w", s.inode.Ino, err)
		}
		f.report.Data += int64(len(s.data))
		mended = true
	}
	if mended {
		return f.disk.Sync()
	}
	return nil
}

// mendLater leaves the files to be written again after the mount, which replays the log.
func (f *finisher) mendLater(replayed map[addr.Block]struct{}) {
	for s := range f.suspects(replayed) {
		m := f.afterMount(s.inode)
		m.Filled = append(m.Filled, addr.Span{Off: s.off, End: s.off + int64(f.super.BlockSize)})
	}
}

// suspect is a block of a file that a replay may have put older content into.
type suspect struct {
	inode *pagecache.Inode
	off   int64  // in the file, bytes
	disk  int64  // on the disk, bytes
	data  []byte // what belongs there; zeros follow it
}

// suspects yields the blocks of files in memory that a replay wrote. It also yields the first
// block of each file, and blocks that the device's own cache has: these were metadata, and a
// checkpoint may have written them before the crash.
func (f *finisher) suspects(replayed map[addr.Block]struct{}) iter.Seq[suspect] {
	return func(yield func(suspect) bool) {
		for i, err := range f.cache.Inodes(f.super) {
			if err != nil || i.Deleted() || i.Writing || !i.Regular() || i.Flags&unplain != 0 || i.Ino < firstInode {
				continue // the plan of the files reports it
			}
			mapped, err := f.dev.Mapping(i)
			if err != nil {
				continue // it is still inline, or blocks of its tree are not there
			}
			for p, err := range f.cache.Held(f.super, i) {
				if err == nil && !f.suspectsIn(i, p, mapped, replayed, yield) {
					return
				}
			}
		}
	}
}

func (f *finisher) suspectsIn(i *pagecache.Inode, p pagecache.Piece, mapped []pagecache.Mapped, replayed map[addr.Block]struct{}, yield func(suspect) bool) bool {
	size := int64(f.super.BlockSize)
	for _, m := range mapped {
		for off := max(m.Off, p.Off); off < min(m.End, p.End) && !m.Unwritten; off += size {
			at := m.Disk + off - m.Off
			n := min(size, i.Size-off)
			if n <= 0 || off+n > p.End || at%size != 0 {
				continue
			}
			block := addr.Block(at / size)
			if _, there := replayed[block]; !there && off > 0 && !f.dev.Caches(block, int(size)) {
				continue
			}
			data, err := f.mem.View(p.Phys+addr.Phys(off-p.Off), int(n))
			if err == nil && !yield(suspect{i, off, at, data}) {
				return false
			}
		}
	}
	return true
}

// ErrInline says that a file or directory with inline data was being converted to blocks,
// and that its content is in neither the inode, nor a block, nor one of its pages. The inode loses it first
// (fs/ext4/inline.c, ext4_convert_inline_data_nolock, ext4_convert_inline_data_to_extent):
// in between no check can tell what it was, whereas an ordinary recovery has all of it.
var ErrInline = errors.New("its inline data was being moved to a block, and is in neither")

// hasInlineData reports whether files may have their data in their inodes.
func hasInlineData(fs *ext4.FS) bool { return fs.Super.Incompat&ext4.IncompatInlineData != 0 }

// checkInline checks that the change leaves no file between inline data and its own block. A file
// that is being converted is in memory. If its first page is filled, the file is written from that
// page after the mount: a task that writes to inline data does so through that page, and one that moves it
// to a block has the page before the inode loses it (fs/ext4/inline.c, ext4_write_inline_data_end,
// ext4_convert_inline_data_to_extent; fs/ext4/inode.c, ext4_page_mkwrite). If it is not filled, checkInline
// rather refuses a file that may be in order. The exception is a short file whose whole content is a hole and
// of which nobody held a lock: a task that moves inline data holds xattr_sem until the data is in its block,
// or in its page (ext4_convert_inline_data).
func (f *finisher) checkInline(c *change) error {
	after := jbd2.NewRecording(c.before)
	m := inlineCheck{
		before: c.fs, after: c.fs.On(after), logged: c.blocks,
		unsaved: func(i *pagecache.Inode) bool { return starts(f.cache.Unsaved(f.super, i)) },
		held:    f.filled,
		busy:    f.cache.MayBeTorn,
		rewrite: f.rewrite,
		free:    func(i *pagecache.Inode) error { return c.free(i.Ino) },
	}
	torn, err := audit.Descriptors(c.before, c.blocks)
	if err != nil {
		return err
	}
	for _, blocks := range []map[addr.Block][]byte{c.blocks, torn} {
		for b, data := range blocks {
			if _, err := after.WriteAt(data, int64(b)*int64(f.super.BlockSize)); err != nil {
				return err
			}
		}
	}
	for i, err := range f.cache.Inodes(f.super) {
		if err != nil || i.Deleted() || i.Ino < firstInode && i.Ino != rootInode {
			continue // the plan of the files reports it
		}
		if err := m.check(i); err != nil {
			return fmt.Errorf("inode %d: %w", i.Ino, err)
		}
	}
	return nil
}

// rootInode is the root directory (EXT4_ROOT_INO).
const rootInode = 2

// inlineCheck looks for files whose inline data was being moved to a block.
type inlineCheck struct {
	before, after *ext4.FS              // without and with the transaction
	logged        map[addr.Block][]byte // the blocks of the transaction
	// unsaved and held report whether memory has the beginning of a file: as unsaved
	// data, or at all.
	unsaved, held func(*pagecache.Inode) bool
	busy          func(*pagecache.Inode) bool  // whether some task may have been changing it
	rewrite       func(*pagecache.Inode)       // leaves the beginning of a file to be written from memory after the mount
	free          func(*pagecache.Inode) error // frees an inode
}

func (m *inlineCheck) check(i *pagecache.Inode) error {
	group, block, offset, err := m.after.Super.InodeLocation(i.Ino)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInline, err)
	}
	g, err := m.after.Group(group)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInline, err)
	}
	if _, there := m.logged[g.InodeTable+addr.Block(block)]; !there {
		return nil
	}
	now, err := m.after.Inode(i.Ino)
	torn := errors.Is(err, ext4.ErrChecksum) && !i.New
	if torn {
		now, err = m.torn(i.Ino, g.InodeTable+addr.Block(block), offset)
	}
	if i.New {
		// The inode has no name yet. But for a directory without a size e2fsck counts one
		// link of its parent too many (seen in 1.47.0), unless it is free.
		if err == nil && now.IsDir() && now.Links > 0 && now.Size == 0 {
			return m.made(i, now)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInline, err)
	}
	switch {
	case torn && now.Flags&ext4.InodeInlineData != 0:
		return m.half(i)
	case now.IsDir() && now.Flags&ext4.InodeInlineData == 0 && now.Size > 0:
		return m.directory(now)
	case mayHaveMoved(&m.after.Super, now):
		return m.short(i, now)
	}
	return nil
}

// torn returns an inode that was being written, with the checksum that matches its content. An inode whose content differs
// from memory's is damaged, and was refused before (audit.Memory, Plausible).
func (m *inlineCheck) torn(n addr.Ino, table addr.Block, offset int) (*ext4.Inode, error) {
	b, err := m.after.Block(table)
	if err != nil {
		return nil, err
	}
	raw := b[offset:][:m.after.Super.InodeSize]
	m.after.Super.SealInode(n, raw)
	return m.after.Super.ParseInode(n, raw)
}

// half handles a file whose inline data, or what is beside it in its inode, was being changed.
func (m *inlineCheck) half(i *pagecache.Inode) error {
	switch {
	case i.Regular() && m.unsaved(i):
	case i.Regular() && m.held(i):
		m.rewrite(i)
	default:
		return fmt.Errorf("%w: its inode was being written", ErrInline)
	}
	return nil
}

// made frees a directory that was being created, which gets its size before its name
// (fs/ext4/namei.c, ext4_mkdir).
func (m *inlineCheck) made(i *pagecache.Inode, now *ext4.Inode) error {
	was, err := m.before.Inode(i.Ino)
	if now.Generation != i.Generation || err == nil && was.Links > 0 && was.Generation == now.Generation {
		return fmt.Errorf("%w: it was being created, but its inode was in use before", ErrInline)
	}
	return m.free(i)
}

// directory checks that the first block is this directory's. If the block is on the disk, its checksum
// tells it from the block of an earlier directory with the same inode number (fs/ext4/namei.c,
// ext4_dirblock_csum_verify). A block in the transaction is there, and may be changing.
func (m *inlineCheck) directory(now *ext4.Inode) error {
	run, err := m.after.Map(now, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInline, err)
	}
	b, err := m.after.Block(run.Physical)
	if err != nil {
		return err
	}
	if addr.Ino(binary.LittleEndian.Uint32(b)) != now.Number || b[6] != 1 || b[8] != '.' {
		return fmt.Errorf("%w: its first block is not a directory block of this inode", ErrInline)
	}
	sum := len(b) - 4
	if _, there := m.logged[run.Physical]; !there && m.after.Super.Checksummed() && now.Flags&ext4.InodeIndex == 0 &&
		binary.LittleEndian.Uint32(b[sum:]) != ext4.CRC32C(now.Seed, b[:sum-8]) {
		return fmt.Errorf("%w: its first block has another checksum", ErrInline)
	}
	return nil
}

// short handles a file that is short enough to have been in its inode.
func (m *inlineCheck) short(i *pagecache.Inode, now *ext4.Inode) error {
	if m.unsaved(i) {
		return nil // the page is unsaved, and is written to the file later
	}
	run, err := m.after.Map(now, 0)
	if err != nil && !errors.Is(err, ext4.ErrHole) {
		return fmt.Errorf("%w: %w", ErrInline, err)
	}
	hole := err != nil
	if was, err := m.before.Inode(i.Ino); err == nil && was.Generation == now.Generation {
		old, err := m.before.Map(was, 0)
		if hole && errors.Is(err, ext4.ErrHole) || !hole && err == nil && old.Physical == run.Physical {
			return nil
		}
	}
	placed := !hole && !run.Unwritten
	_, logged := m.logged[run.Physical]
	switch {
	case placed && logged:
	case m.held(i):
		if !placed || i.Writing { // mend handles the others
			m.rewrite(i)
		}
	case placed:
		return fmt.Errorf("%w: its block may not have been written", ErrInline)
	case m.busy(i):
		return fmt.Errorf("%w: it has no block", ErrInline)
	}
	return nil
}

// filled reports whether memory holds the first block of a file, as programs saw it.
func (f *finisher) filled(i *pagecache.Inode) bool {
	for p, err := range f.cache.Held(f.super, i) {
		if err == nil && p.Off == 0 {
			return i.Flags&unplain == 0 && p.End >= min(i.Size, int64(f.super.BlockSize))
		}
	}
	return false
}

// rewrite leaves the first block of a file to be written after the mount.
func (f *finisher) rewrite(i *pagecache.Inode) {
	m := f.afterMount(i)
	m.Filled = append(m.Filled, addr.Span{Off: 0, End: int64(f.super.BlockSize)})
}

// rewriteAgain does what checkInline does with rewrite, for a rescue whose transaction is already on
// the disk: the state before it is no longer known.
func (f *finisher) rewriteAgain() error {
	c, err := f.change(&jbd2.Transaction{})
	if err != nil || !hasInlineData(c.fs) {
		return err
	}
	for i, err := range f.cache.Inodes(f.super) {
		if err != nil || i.Deleted() || i.New || i.Ino < firstInode {
			continue
		}
		now, err := c.fs.Inode(i.Ino)
		half := err == nil && now.Flags&ext4.InodeInlineData != 0 && i.Regular() && f.cache.MayBeTorn(i)
		if err != nil || now.Generation != i.Generation || !half && !mayHaveMoved(&c.fs.Super, now) || !f.filled(i) {
			continue
		}
		if half {
			f.rewrite(i)
			continue
		}
		if run, err := c.fs.Map(now, 0); err != nil || run.Unwritten || i.Writing {
			f.rewrite(i)
		}
	}
	return nil
}

// mayHaveMoved reports whether a file whose data is not in its inode is short enough to have had it
// there.
func mayHaveMoved(s *ext4.Super, now *ext4.Inode) bool {
	return now.IsRegular() && now.Flags&ext4.InodeInlineData == 0 && now.Size > 0 && now.Size < uint64(s.InodeSize)
}

// starts reports whether pieces of a file include its beginning.
func starts(pieces iter.Seq2[pagecache.Piece, error]) bool {
	for p, err := range pieces {
		if err == nil && p.Off == 0 {
			return true
		}
	}
	return false
}
