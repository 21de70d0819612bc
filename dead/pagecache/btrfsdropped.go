package pagecache

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// btrfsTrees is what is read of the structures that lead to the trees of a file system, and of what is to be written into
// them (fs/btrfs/fs.h, ctree.h, extent_io.h, delayed-inode.h).
type btrfsTrees struct {
	blocks, roots           kernel.Field // in btrfs_fs_info: the inode whose pages are the tree blocks, and the subvolumes
	node, log, delayed      kernel.Field // in btrfs_root
	refs, originTrans       kernel.Field // in btrfs_root.root_item
	parent                  kernel.Field // likewise: the UUID of what it is a snapshot of
	start, blockFlags       kernel.Field // in extent_buffer
	uptodate                uint64       // number of the bit in blockFlags
	blockLock               kernel.Lock  // likewise
	delayedSize             int
	delayedRoot, delayedIno kernel.Field
	delayedCount            kernel.Field
	delayedFlags, inodeItem kernel.Field
	err                     error // something of that was not found
}

// btrfsDelayedInode is the bit in flags that says that inode_item is to be written (fs/btrfs/delayed-inode.h,
// BTRFS_DELAYED_NODE_INODE_DIRTY).
const btrfsDelayedInode = 1

func newBtrfsTrees(k *kernel.Kernel, types *kernel.Types, info, root *kernel.Layout) *btrfsTrees {
	t := &btrfsTrees{}
	t.blocks, t.roots = info.Field("btree_inode", 8), info.Field("fs_roots_radix")
	t.node, t.log = root.Field("node", 8), root.Field("log_root", 8)
	// A radix tree, and since 6.8 an xarray (seen on 6.1, 6.12 and 7.2).
	t.delayed = root.First([]string{"delayed_nodes_tree", "delayed_nodes"})
	t.refs, t.originTrans = root.Field("root_item.refs", 4), root.Field("root_item.otransid", 8)
	t.parent = root.Field("root_item.parent_uuid", 16)
	b := layoutIn(k, "extent_buffer", "btrfs")
	t.start, t.blockFlags, t.blockLock = b.Field("start", 8), b.Optional("bflags", 8), b.Lock("lock")
	d := layoutIn(k, "btrfs_delayed_node", "btrfs")
	t.delayedSize = d.Size
	t.delayedRoot, t.delayedIno, t.delayedCount = d.Field("root", 8), d.Field("inode_id", 8), d.Field("count", 4)
	t.delayedFlags, t.inodeItem = d.Field("flags", 8), d.Field("inode_item", btrfsInodeItemSize)
	var err error
	if t.uptodate, err = types.Constant("EXTENT_BUFFER_UPTODATE"); err != nil || t.uptodate > 63 {
		t.blockFlags = kernel.Field{} // then no file is mapped
	}
	t.err = errors.Join(info.Err(), root.Err(), b.Err(), d.Err())
	return t
}

// Dropped yields a *Refusal for each file, directory or link that a transaction which is not committed has changed, although the
// VFS has dropped its inode: memory has neither its names nor its pages. listed has the addresses of the inodes that the VFS has
// (Cache.Inodes). Deleted inodes are left out, and those of which the log tree has the same state. Any other error says that
// the walk was not completed.
//
// The changes are found in the trees of the subvolumes as memory has them: each block that was changed since the last commit has
// the generation of its transaction, and so has each block above it (fs/btrfs/ctree.c, btrfs_cow_block). What is not in these
// blocks yet is in the delayed nodes.
func (f *Btrfs) Dropped(listed map[addr.Virt]struct{}) iter.Seq[error] {
	return func(yield func(error) bool) {
		there, err := f.identities(listed)
		if err == nil {
			err = f.layout.trees.err
		}
		if err != nil {
			yield(fmt.Errorf("walk inodes of %s: %w", f.s.ID, err))
			return
		}
		for root, err := range f.c.pointers(f.s.info + addr.Virt(f.layout.trees.roots.Off)) {
			var inodes []addr.Ino
			if err == nil {
				inodes, err = f.dropped(root, there)
			}
			if err != nil && !yield(fmt.Errorf("walk inodes of %s: %w", f.s.ID, err)) {
				return
			}
			for _, ino := range inodes {
				if !yield(&Refusal{Inode: ino, Reason: Partial, Cause: ErrDropped}) {
					return
				}
			}
		}
	}
}

// btrfsInode identifies an inode of a file system: numbers are unique only within a subvolume.
type btrfsInode struct {
	root addr.Virt
	ino  addr.Ino
}

// identities returns which inodes the VFS has.
func (f *Btrfs) identities(listed map[addr.Virt]struct{}) (map[btrfsInode]struct{}, error) {
	out := make(map[btrfsInode]struct{}, len(listed))
	for at := range listed {
		b, err := f.own(&Inode{Addr: at})
		if err != nil {
			return nil, err
		}
		ino := addr.Ino(f.c.layout.inode.ino.Uint(b[f.layout.inode.Off:]))
		out[btrfsInode{f.layout.root.Pointer(b), ino}] = struct{}{}
	}
	return out, nil
}

// dropped returns the inodes of one subvolume that were changed and dropped, in ascending order. With an error, there may be more.
func (f *Btrfs) dropped(root addr.Virt, there map[btrfsInode]struct{}) ([]addr.Ino, error) {
	t := f.layout.trees
	b, err := f.subvolume(root)
	if err != nil {
		return nil, err
	}
	id := f.layout.rootID.Uint(b)
	snapshot := t.originTrans.Uint(b) > f.LastCommitted && UUID(t.parent.Bytes(b)) != UUID{}
	if t.refs.Uint(b) == 0 || snapshot || id != topSubvolume && (id < firstSubvolume || id > lastSubvolume) {
		return nil, nil // deleted; or the disk does not have it, and what it is of has the same inodes
	}
	changed, err := f.changed(t.node.Pointer(b))
	err = errors.Join(err, f.delayed(root, changed))
	logged := f.logged(t.log.Pointer(b))
	var out []addr.Ino
	for _, ino := range slices.Sorted(maps.Keys(changed)) {
		item := changed[ino]
		if _, ok := there[btrfsInode{root, ino}]; ok || item.links() == 0 || ino < firstSubvolume || ino > lastSubvolume || item.same(logged[ino]) {
			continue
		}
		out = append(out, ino)
	}
	if err != nil {
		err = fmt.Errorf("subvolume %d: %w", id, err)
	}
	return out, err
}

// delayed adds the inodes of a subvolume for which something is to be written into its tree. For the inode itself, that is
// newer than what the tree has.
func (f *Btrfs) delayed(root addr.Virt, changed map[addr.Ino]btrfsInodeItem) error {
	t := f.layout.trees
	for at, err := range f.c.pointers(root + addr.Virt(t.delayed.Off)) {
		if err != nil {
			return fmt.Errorf("delayed nodes: %w", err)
		}
		b, err := f.c.k.Bytes(at, t.delayedSize)
		if err != nil {
			return fmt.Errorf("delayed nodes: %w", err)
		}
		if owner := t.delayedRoot.Pointer(b); owner != root {
			return fmt.Errorf("delayed nodes: the one at %v belongs to the subvolume at %v", at, owner)
		}
		ino := addr.Ino(t.delayedIno.Uint(b))
		if _, ok := changed[ino]; t.delayedFlags.Uint(b)>>btrfsDelayedInode&1 == 1 {
			changed[ino] = btrfsInodeItem(t.inodeItem.Bytes(b))
		} else if t.delayedCount.Uint(b) != 0 && !ok {
			changed[ino] = anyInodeItem
		}
	}
	return nil
}

// logged returns the inode items of a subvolume's log tree; none, unless all of it is known to be on the disk.
func (f *Btrfs) logged(log addr.Virt) map[addr.Ino]btrfsInodeItem {
	if log == 0 || f.Logging {
		return nil
	}
	b, err := f.subvolume(log)
	if err != nil {
		return nil
	}
	items, _ := f.changed(f.layout.trees.node.Pointer(b)) // what it does not find is refused
	return items
}

// changed returns the inode items of a tree that are younger than the last commit. top is the extent buffer of its root block.
// With an error, there may be more.
func (f *Btrfs) changed(top addr.Virt) (map[addr.Ino]btrfsInodeItem, error) {
	w := &btrfsWalk{items: make(map[addr.Ino]btrfsInodeItem)}
	at, err := f.c.k.U64(f.layout.trees.start.In(top))
	if err != nil {
		return w.items, err
	}
	if w.btrfsBlocks, err = f.blocks(); err != nil {
		return w.items, err
	}
	return w.items, w.top(at)
}

// blocks returns the tree blocks as memory has them.
func (f *Btrfs) blocks() (*btrfsBlocks, error) {
	inode, err := f.c.k.Pointer(f.s.info + addr.Virt(f.layout.trees.blocks.Off))
	if err != nil {
		return nil, err
	}
	cache := &Device{c: f.c, super: f.s, mapping: f.c.layout.inode.data.In(inode)}
	return &btrfsBlocks{f: f, cache: cache, visited: make(map[uint64]struct{})}, nil
}
