package journal

import (
	"bytes"
	"fmt"

	"understudy/addr"
	"understudy/ext4"
	"understudy/jbd2"
	"understudy/pagecache"
)

// stale finds blocks of files of which the log still has an older version, which a
// replay would put over the newer one on the disk. With inline data ext4 logs the
// first block of a file that grows out of its inode (fs/ext4/inline.c,
// ext4_convert_inline_data_nolock), and frees it without a revoke record, as it does
// all data (fs/ext4/extents.c, get_default_free_blocks_flags): an ordinary recovery
// breaks the next file to have that block. Whose data it is, memory tells: the disk
// has what a clean page has, and the log does not.
func (f *finisher) stale(log *jbd2.Log, scan *jbd2.Scan, t *jbd2.Transaction) ([]addr.Block, error) {
	if log.FS.Super.Incompat&ext4.IncompatInlineData == 0 {
		return nil, nil
	}
	logged := make(map[addr.Block]jbd2.LoggedBlock)
	for _, b := range scan.Newest() {
		logged[b.Home] = b.LoggedBlock
	}
	for _, b := range t.Blocks {
		delete(logged, b.Home)
	}
	for _, b := range t.Revokes {
		delete(logged, b)
	}
	var out []addr.Block
	for i, err := range f.cache.Inodes(f.super) {
		if len(logged) == 0 {
			break
		}
		if err != nil || i.Deleted() || !i.Regular() || i.Flags&unplain != 0 || i.Ino < firstInode {
			continue // who plans the files says so
		}
		blocks, err := f.staleIn(i, log, logged)
		if err != nil {
			return nil, err
		}
		out = append(out, blocks...)
	}
	return out, nil
}

// staleIn looks at the pages of one file. It takes what it finds out of logged.
func (f *finisher) staleIn(i *pagecache.Inode, log *jbd2.Log, logged map[addr.Block]jbd2.LoggedBlock) ([]addr.Block, error) {
	places, err := f.dev.Mapping(i)
	if err != nil {
		return nil, nil // inline, or in need of blocks that are not there
	}
	size := int64(f.super.BlockSize)
	var out []addr.Block
	for _, m := range places {
		for off := m.Off; off < m.End && !m.Unwritten; off += size {
			home := addr.Block((m.Disk + off - m.Off) / size)
			version, there := logged[home]
			if !there {
				continue
			}
			newer, err := f.newer(i, off, home, log, version)
			if err != nil {
				return nil, err
			}
			if newer {
				out = append(out, home)
				delete(logged, home)
			}
		}
	}
	return out, nil
}

// newer reports whether memory and the disk agree on a block of a file, against the
// version in the log.
func (f *finisher) newer(i *pagecache.Inode, off int64, home addr.Block, log *jbd2.Log, version jbd2.LoggedBlock) (bool, error) {
	n := min(int64(f.super.BlockSize), i.Size-off)
	for p, err := range f.cache.Held(f.super, i) {
		if err != nil || off < p.Off || off+n > p.End || n <= 0 {
			continue
		}
		mine, err := f.mem.View(p.Phys+addr.Phys(off-p.Off), int(n))
		if err != nil {
			return false, nil // not in memory after all
		}
		disk, err := log.FS.Block(home)
		if err != nil {
			return false, fmt.Errorf("read block %d: %w", home, err)
		}
		old, err := log.Read(version)
		if err != nil {
			return false, err
		}
		return bytes.Equal(mine, disk[:n]) && !bytes.Equal(mine, old[:n]), nil
	}
	return false, nil
}
