package journal

import (
	"errors"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/pagecache"
)

// ErrCheck says that e2fsck, which would have to check what operations in flight left,
// would itself do harm.
var ErrCheck = errors.New("its truncation was in flight, e2fsck would damage it, and memory does not have its inode")

// keepOrphans keeps e2fsck from doing harm. e2fsck truncates the files on the orphan list that
// have links, as a mount does; but it also frees their extended attribute block, and with bigalloc
// leaves a part of their last cluster (e2fsck/super.c, release_inode_blocks; seen in
// 1.47.0). Such files are taken off the list, and truncated after the check.
func (f *finisher) keepOrphans(c *change) error {
	truncating, err := audit.Truncating(c.before, c.blocks)
	if err != nil {
		return nil // then the orphan list cannot be trusted, and e2fsck finds that out
	}
	var harmed []addr.Ino
	for _, i := range truncating {
		if i.Attributes != 0 || c.fs.Super.ROCompat&ext4.ROCompatBigalloc != 0 {
			harmed = append(harmed, i.Number)
		}
	}
	if len(harmed) == 0 {
		return nil
	}
	if err := f.truncateLater(harmed); err != nil {
		return err
	}
	edited, err := audit.Unlist(c.before, c.blocks, harmed)
	if err != nil {
		return err
	}
	return c.replaceAll(edited)
}

// truncatable reports whether a file's size may be set.
func truncatable(i *pagecache.Inode) bool {
	return i.Regular() && !i.Deleted() && i.Flags&unplain == 0 && i.Ino >= firstInode
}

// truncateLater leaves files to be truncated after the mount. A file that is being truncated is in
// memory.
func (f *finisher) truncateLater(files []addr.Ino) error {
	found := make(map[addr.Ino]*pagecache.Inode)
	for i, err := range f.cache.Inodes(f.super) {
		if err == nil && (truncatable(i) || i.Deleted()) && slices.Contains(files, i.Ino) {
			found[i.Ino] = i
		}
	}
	for _, ino := range files {
		i := found[ino]
		if i == nil {
			return fmt.Errorf("inode %d: %w", ino, ErrCheck)
		}
		if i.Deleted() {
			continue // it has no name after the check, and is deleted then
		}
		f.afterMount(i).Cut = true
	}
	return nil
}

// afterMount returns the entry of a file in the report.
func (f *finisher) afterMount(i *pagecache.Inode) *AfterMount {
	n := slices.IndexFunc(f.report.AfterMount, func(m AfterMount) bool { return m.Inode.Ino == i.Ino })
	if n < 0 {
		n, f.report.AfterMount = len(f.report.AfterMount), append(f.report.AfterMount, AfterMount{Inode: i})
	}
	return &f.report.AfterMount[n]
}
