package journal

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"understudy/addr"
	"understudy/ext4"
	"understudy/jbd2"
	"understudy/pagecache"
)

// version reads an older version of a block.
type version func() ([]byte, error)

// stale finds blocks of files, among those of which there are versions, that have
// newer content on the disk already. With inline data ext4 logs the first block of a
// file that grows out of its inode, as if it were metadata (fs/ext4/inline.c,
// ext4_convert_inline_data_nolock); the file goes on in its own pages, and frees the
// block without a revoke record, as it does all data (fs/ext4/extents.c,
// get_default_free_blocks_flags). An ordinary recovery puts the old version over
// this file, or the next to have the block. Whose data it is, memory tells: the disk
// has what a clean page has, and the version does not.
func (f *finisher) stale(log *jbd2.Log, versions map[addr.Block]version) (map[addr.Block]bool, error) {
	out := make(map[addr.Block]bool)
	if log.FS.Super.Incompat&ext4.IncompatInlineData == 0 || len(versions) == 0 {
		return out, nil
	}
	for i, err := range f.cache.Inodes(f.super) {
		if err != nil || i.Deleted() || !i.Regular() || i.Flags&unplain != 0 || i.Ino < firstInode {
			continue // who plans the files says so
		}
		if err := f.staleIn(i, log, versions, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// staleIn looks at the pages of one file.
func (f *finisher) staleIn(i *pagecache.Inode, log *jbd2.Log, versions map[addr.Block]version, out map[addr.Block]bool) error {
	places, err := f.dev.Mapping(i)
	if err != nil {
		return nil // inline, or in need of blocks that are not there
	}
	size := int64(f.super.BlockSize)
	for _, m := range places {
		for off := m.Off; off < m.End && !m.Unwritten; off += size {
			home := addr.Block((m.Disk + off - m.Off) / size)
			old := versions[home]
			if old == nil {
				continue
			}
			newer, err := f.newer(i, off, home, log, old)
			if err != nil {
				return err
			}
			if newer {
				out[home] = true
			}
		}
	}
	return nil
}

// newer reports whether memory and the disk agree on a block of a file, against an
// older version.
func (f *finisher) newer(i *pagecache.Inode, off int64, home addr.Block, log *jbd2.Log, old version) (bool, error) {
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
		was, err := old()
		if err != nil {
			return false, err
		}
		return bytes.Equal(mine, disk[:n]) && !bytes.Equal(mine, was[:n]), nil
	}
	return false, nil
}

// dropStale takes blocks of files out of a transaction that are newer on the disk.
func (f *finisher) dropStale(log *jbd2.Log, t *jbd2.Transaction) error {
	versions := make(map[addr.Block]version)
	for _, b := range t.Blocks {
		versions[b.Home] = func() ([]byte, error) { return b.Data, nil }
	}
	stale, err := f.stale(log, versions)
	if err != nil || len(stale) == 0 {
		return err
	}
	t.Blocks = slices.DeleteFunc(t.Blocks, func(b jbd2.Block) bool { return stale[b.Home] })
	t.Revokes = slices.Sorted(maps.Keys(mergeSets(stale, t.Revokes)))
	return nil
}

// revokeStale has a transaction revoke blocks of files of which the log has an older
// version.
func (f *finisher) revokeStale(log *jbd2.Log, scan *jbd2.Scan, t *jbd2.Transaction) error {
	versions := make(map[addr.Block]version)
	for _, b := range scan.Newest() {
		versions[b.Home] = func() ([]byte, error) { return log.Read(b.LoggedBlock) }
	}
	for _, b := range t.Blocks {
		delete(versions, b.Home)
	}
	stale, err := f.stale(log, versions)
	if err != nil || len(stale) == 0 {
		return err
	}
	t.Revokes = slices.Sorted(maps.Keys(mergeSets(stale, t.Revokes)))
	return nil
}

func mergeSets(set map[addr.Block]bool, more []addr.Block) map[addr.Block]bool {
	for _, b := range more {
		set[b] = true
	}
	return set
}
