package journal

import (
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/pagecache"
)

// forget makes a replay leave out logged blocks that were freed later, and those that are damaged and that the rescue does
// without. It fails if others are damaged.
func (f *finisher) forget(log *jbd2.Log, scan *jbd2.Scan) error {
	if err := log.ForgetFreed(scan); err != nil {
		return err
	}
	if s := &log.FS.Super; s.ClusterSize > s.BlockSize {
		log.Forget(scan, f.punched(scan))
	}
	if damaged := scan.Damaged(); len(damaged) > 0 {
		log.Forget(scan, f.outdated(log, damaged))
	}
	return scan.Whole()
}

// outdated returns those of some blocks in the log for which memory has something newer: content of files (data=journal) that is in an
// unfinished transaction, or is unsaved and goes to the block itself; and blocks that an unfinished transaction has freed.
// Linux 7.2 was seen to commit a block of a file, which was freed soon after, with a checksum that is not that of the block.
func (f *finisher) outdated(log *jbd2.Log, damaged []addr.Block) (out []addr.Block) {
	size := int64(f.super.BlockSize)
	newest, written := f.Journal.newest(), make(map[addr.Block]bool)
	for _, b := range f.data {
		for at := b.disk; b.ino != 0 && at+size <= b.disk+b.len; at += size {
			written[addr.Block(at/size)] = true
		}
	}
	for _, b := range damaged {
		content := newest[b].File != 0 || written[b]
		if content || !f.dev.Caches(b, int(size)) && log.Frees(func(b addr.Block) []byte { return newest[b].Data }, b) {
			out = append(out, b)
		}
	}
	return out
}

// punched returns blocks of files that are in the log, and that were freed since and given back to the file without any
// bitmap saying so: with bigalloc a cluster stays in use for as long as the file has any block in it. As long as content
// of a file is in the log only (data=journal), its buffer, in the page of its file, belongs to the journal
// (fs/jbd2/checkpoint.c, jbd2_journal_try_remove_checkpoint): for any other block of the file, the kernel would have read
// the home. Blocks of which memory says nothing are left as they are.
func (f *finisher) punched(scan *jbd2.Scan) (out []addr.Block) {
	size := int64(f.super.BlockSize)
	var logged []addr.Block // blocks that the device's own cache does not have: they are not metadata
	for _, b := range scan.Newest() {
		if !f.dev.Caches(b.Home, int(size)) {
			logged = append(logged, b.Home)
		}
	}
	if len(logged) == 0 {
		return nil
	}
	for i, err := range f.cache.Inodes(f.super) {
		if err != nil || i.Deleted() || !i.Regular() || i.Ino < firstInode {
			continue
		}
		mapped, err := f.dev.Mapping(i)
		if err != nil {
			continue
		}
		has := mappedOf(logged, mapped, size)
		if len(has) == 0 {
			continue
		}
		journaled, err := f.dev.Journaled(i)
		if err != nil {
			continue
		}
		slices.Sort(journaled)
		out = append(out, slices.DeleteFunc(has, func(b addr.Block) bool {
			_, there := slices.BinarySearch(journaled, b)
			return there
		})...)
	}
	return out
}

// mappedOf returns those of some ascending blocks that a file has.
func mappedOf(blocks []addr.Block, mapped []pagecache.Mapped, size int64) (out []addr.Block) {
	for _, m := range mapped {
		n, _ := slices.BinarySearch(blocks, addr.Block(m.Disk/size))
		for ; n < len(blocks) && int64(blocks[n])*size < m.Disk+m.Len(); n++ {
			out = append(out, blocks[n])
		}
	}
	return out
}
