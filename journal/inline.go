package journal

import (
	"bytes"
	"errors"
	"fmt"

	"understudy/addr"
	"understudy/ext4"
	"understudy/pagecache"
)

// mend writes blocks of files over again that the log has put older content into.
// With inline data ext4 logs the first block of a file that grows out of its inode,
// as if it were metadata (fs/ext4/inline.c, ext4_convert_inline_data_nolock). The file
// goes on in its own pages, and frees the block without a revoke record, as it does
// all data (fs/ext4/extents.c, get_default_free_blocks_flags): a checkpoint or a
// recovery puts the old version over this file, or over the next to have the block.
// The dead kernel's own page, which programs were served, has what belongs there.
// suspect are the blocks that a replay has written; the first one of each file is
// looked at besides.
func (f *finisher) mend(suspect map[addr.Block]struct{}) error {
	mended := false
	for i, err := range f.cache.Inodes(f.super) {
		if err != nil || i.Deleted() || i.Writing || !i.Regular() || i.Flags&unplain != 0 || i.Ino < firstInode {
			continue // who plans the files says so
		}
		places, err := f.dev.Mapping(i)
		if err != nil {
			continue // it is still inline, or blocks of its tree are not there
		}
		for p, err := range f.cache.Held(f.super, i) {
			if err != nil {
				continue
			}
			did, err := f.mendPiece(i, p, places, suspect)
			if err != nil {
				return fmt.Errorf("mend inode %d: %w", i.Ino, err)
			}
			mended = mended || did
		}
	}
	if mended {
		return f.disk.Sync()
	}
	return nil
}

// mendPiece compares what memory holds of a file with the disk, block by block.
func (f *finisher) mendPiece(i *pagecache.Inode, p pagecache.Piece, places []pagecache.Mapped, suspect map[addr.Block]struct{}) (mended bool, err error) {
	size := int64(f.super.BlockSize)
	buf := make([]byte, size)
	for _, m := range places {
		for off := max(m.Off, p.Off); off < min(m.End, p.End) && !m.Unwritten; off += size {
			at := m.Disk + off - m.Off
			n := min(size, i.Size-off)
			if _, there := suspect[addr.Block(at/size)]; !there && off > 0 || n <= 0 || off+n > p.End || at%size != 0 {
				continue
			}
			mine, err := f.mem.View(p.Phys+addr.Phys(off-p.Off), int(n))
			if err != nil {
				continue // not in memory after all
			}
			if _, err := f.disk.ReadAt(buf, at); err != nil {
				return mended, err
			}
			if bytes.Equal(buf[:n], mine) {
				continue
			}
			clear(buf[copy(buf, mine):])
			if _, err := f.disk.WriteAt(buf, at); err != nil {
				return mended, err
			}
			f.report.Data += n
			mended = true
		}
	}
	return mended, nil
}

// ErrHalfDone says that operations had not returned, on a file system with inline
// data. One that grows out of its inode, a directory above all, is for a while in
// neither place (fs/ext4/inline.c, ext4_convert_inline_data_nolock): no check can tell
// what was in it, and an ordinary recovery has all of it.
var ErrHalfDone = errors.New("operations had not returned, and with inline data what they had half done cannot be told from what was done")

// hasInlineData reports whether files may lie in their inodes.
func hasInlineData(fs *ext4.FS) bool { return fs.Super.Incompat&ext4.IncompatInlineData != 0 }
