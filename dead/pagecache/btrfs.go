package pagecache

import (
	"encoding/binary"
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// Btrfs is what the kernel's btrfs has in memory about one mounted file system.
type Btrfs struct {
	// LastCommitted is the transaction that the disk has: the last whose superblock
	// the kernel knew to be written (last_trans_committed).
	LastCommitted uint64
	// Super are the bytes of the superblock that was written last, or was about to
	// be (super_for_commit).
	Super []byte
	// Logging says that an fsync was about to write that superblock with a new root of the log
	// tree: the superblock on the disk may still have the previous root.
	Logging bool

	c        *Cache
	s        *Superblock
	layout   *btrfsLayout
	single   bool // at most one transaction is not committed
	nodeSize int  // of a tree block, in bytes
}

// BtrfsSuperSize is the size of a superblock, in bytes (BTRFS_SUPER_INFO_SIZE,
// fs/btrfs/fs.h).
const BtrfsSuperSize = 4096

// btrfsNodeSize is where a superblock has the size of a tree block (include/uapi/linux/btrfs_tree.h, struct btrfs_super_block).
const btrfsNodeSize = 148

// btrfsLayout is what is read of the structures of btrfs (fs/btrfs/fs.h,
// btrfs_inode.h, ctree.h, extent_map.h, and fs/btrfs/ordered-data.h).
type btrfsLayout struct {
	infoSize                                int
	super, generation, committed, forCommit kernel.Field
	logRoot                                 kernel.Field
	inodeSize                               int
	inode, root, lastTrans, loggedTrans     kernel.Field
	ordered, modified, flags                kernel.Field
	logging, changing                       kernel.Lock
	blocks, bytes                           kernel.Field
	fullSync                                uint64 // number of the bit in flags
	extentSize                              int
	extentList, extentGeneration            kernel.Field
	rootSize                                int
	rootInfo, rootID, logCommit             kernel.Field
	running, began                          kernel.Field // running_transaction, and its start_time in seconds of the monotonic clock
	inodeFlags                              kernel.Field
	orderedLock                             kernel.Lock
	orderedNodes                            rbLayout
	orderedOff, orderedLen                  kernel.Field
	orderedErr                              error // something of btrfs_ordered_extent was not found
	trees                                   *btrfsTrees
}

func newBtrfsLayout(k *kernel.Kernel) (*btrfsLayout, error) {
	b := &btrfsLayout{}
	f := layoutIn(k, "btrfs_fs_info", "btrfs")
	b.infoSize = f.Size
	b.super, b.generation = f.Field("sb", 8), f.Field("generation", 8)
	b.committed, b.forCommit = f.Field("last_trans_committed", 8), f.Field("super_for_commit", 8)
	b.logRoot, b.running = f.Field("log_root_tree", 8), f.Optional("running_transaction", 8)
	b.began = layoutIn(k, "btrfs_transaction", "btrfs").Optional("start_time", 8)
	i := layoutIn(k, "btrfs_inode", "btrfs")
	b.inodeSize = i.Size
	b.inode, b.root = i.Field("vfs_inode"), i.Field("root", 8)
	b.lastTrans, b.loggedTrans = i.Field("last_trans", 8), i.Field("logged_trans", 8)
	b.blocks, b.bytes = i.Field("vfs_inode.i_blocks", 8), i.Field("vfs_inode.i_bytes", 2)
	b.modified, b.flags = i.Field("extent_tree.modified_extents", 16), i.Field("runtime_flags", 8)
	b.logging, b.changing, b.inodeFlags = i.Lock("log_mutex"), i.Lock("i_mmap_lock", "vfs_inode.i_rwsem"), i.Optional("flags", 4, 8)
	// On 6.1 there is a structure around the tree, on 6.12 not.
	b.ordered = i.First([]string{"ordered_tree.tree.rb_node", "ordered_tree.rb_node"}, 8)
	// Likewise.
	b.orderedLock = i.Lock("ordered_tree.lock", "ordered_tree_lock")
	o := layoutIn(k, "btrfs_ordered_extent", "btrfs")
	b.orderedNodes, b.orderedOff, b.orderedLen = newRBLayout(o, "rb_node"), o.Field("file_offset", 8), o.Field("num_bytes", 8)
	b.orderedErr = o.Err()
	e := layoutIn(k, "extent_map", "btrfs")
	b.extentSize = e.Size
	b.extentList, b.extentGeneration = e.Field("list", 16), e.Field("generation", 8)
	r := layoutIn(k, "btrfs_root", "btrfs")
	b.rootSize = r.Size
	b.rootInfo, b.rootID = r.Field("fs_info", 8), r.Field("root_key.objectid", 8)
	b.logCommit = r.Field("log_commit", 8, 2) // two atomic_t; since 7.3 two bool (seen on 7.3.4)
	err := errors.Join(f.Err(), i.Err(), e.Err(), r.Err())
	if err != nil {
		return nil, err
	}
	types, err := k.Module("btrfs")
	if err != nil {
		types = k.Types() // it is part of the image
	}
	b.trees = newBtrfsTrees(k, types, f, r)
	b.fullSync, err = types.Constant("BTRFS_INODE_NEEDS_FULL_SYNC")
	if err == nil && b.fullSync > 63 {
		err = fmt.Errorf("BTRFS_INODE_NEEDS_FULL_SYNC is bit %d", b.fullSync)
	}
	return b, err
}

// Btrfs reads what the kernel's btrfs has about a file system.
func (c *Cache) Btrfs(s *Superblock) (*Btrfs, error) {
	l, err := newBtrfsLayout(c.k)
	if err != nil {
		return nil, fmt.Errorf("read btrfs: %w", err)
	}
	b, err := c.k.Bytes(s.info, l.infoSize)
	if err != nil {
		return nil, fmt.Errorf("read btrfs: %s: %w", s.ID, err)
	}
	if owner := l.super.Pointer(b); owner != s.Addr {
		return nil, fmt.Errorf("read btrfs: %s: its structure belongs to superblock at %v", s.ID, owner)
	}
	super, err := c.k.Bytes(l.forCommit.Pointer(b), BtrfsSuperSize)
	if err != nil {
		return nil, fmt.Errorf("read btrfs: superblock of %s: %w", s.ID, err)
	}
	f := &Btrfs{LastCommitted: l.committed.Uint(b), Super: super, c: c, s: s, layout: l}
	f.single = l.generation.Uint(b) <= f.LastCommitted+1
	f.nodeSize = int(binary.LittleEndian.Uint32(super[btrfsNodeSize:]))
	if f.nodeSize < 4<<10 || f.nodeSize > 64<<10 || f.nodeSize&(f.nodeSize-1) != 0 {
		return nil, fmt.Errorf("read btrfs: superblock of %s: tree blocks of %d bytes", s.ID, f.nodeSize)
	}
	if root := l.logRoot.Pointer(b); root != 0 {
		if f.Logging, err = f.committing(root); err != nil {
			return nil, fmt.Errorf("read btrfs: tree of logs of %s: %w", s.ID, err)
		}
	}
	return f, nil
}

// committing reports whether an fsync is writing the log root tree: log_commit, of either of the last
// two log transactions, is set until the superblock is written (fs/btrfs/tree-log.c, btrfs_sync_log).
func (f *Btrfs) committing(root addr.Virt) (bool, error) {
	b, err := f.c.k.Bytes(root, f.layout.rootSize)
	if err != nil {
		return false, err
	}
	return f.layout.logCommit.Uint(b) != 0, nil
}

// own reads the btrfs_inode around an inode.
func (f *Btrfs) own(i *Inode) ([]byte, error) {
	b, err := f.c.k.Bytes(i.Addr-addr.Virt(f.layout.inode.Off), f.layout.inodeSize)
	if err != nil {
		return nil, fmt.Errorf("read btrfs inode %d: %w", i.Ino, err)
	}
	return b, nil
}

// Committed reports whether the disk has everything that memory has of an inode except its
// unsaved data, and the size and times that are written with that data: the transaction that
// last changed the inode is committed, and no written data waits for its extent to be
// recorded. The pages of such data are already clean (fs/btrfs/ordered-data.c).
func (f *Btrfs) Committed(i *Inode) (bool, error) {
	b, err := f.own(i)
	if err != nil {
		return false, err
	}
	return f.layout.lastTrans.Uint(b) <= f.LastCommitted && f.layout.ordered.Uint(b) == 0, nil
}

// Bare reports whether a file has no extent on the disk, as the kernel saw it, and none
// that waits to be recorded: what is not in memory is then zeros. An extent is counted only
// once it is recorded; for a direct write that is after its data is written.
func (f *Btrfs) Bare(i *Inode) (bool, error) {
	b, err := f.own(i)
	if err != nil {
		return false, err
	}
	l := f.layout
	return l.blocks.Uint(b) == 0 && l.bytes.Uint(b) == 0 && l.ordered.Uint(b) == 0, nil
}

// Kept reports whether the extents of a file are those that the last committed
// transaction has. It relies on what a fast fsync relies on: the kernel lists all
// extents that the running transaction changed, or sets a flag
// (fs/btrfs/tree-log.c, btrfs_log_changed_extents; extent_io.c,
// try_release_extent_mapping). If the file was logged since then, its extents were
// taken off the list. The generation of an inode is the transaction that created it
// (inode.c, btrfs_new_inode): the committed transaction has no extents of a younger file.
func (f *Btrfs) Kept(i *Inode) (bool, error) {
	b, err := f.own(i)
	if err != nil {
		return false, err
	}
	l := f.layout
	if !f.single || uint64(i.Generation) > f.LastCommitted || l.flags.Uint(b)>>l.fullSync&1 == 1 || l.ordered.Uint(b) != 0 || !l.logging.Free(b) || l.loggedTrans.Uint(b) > f.LastCommitted {
		return false, nil
	}
	for at, err := range f.c.List(l.modified.In(i.Addr - addr.Virt(l.inode.Off))) {
		if err != nil {
			return false, fmt.Errorf("read extents of btrfs inode %d: %w", i.Ino, err)
		}
		e, err := f.c.k.Bytes(at-addr.Virt(l.extentList.Off), l.extentSize)
		if err != nil {
			return false, fmt.Errorf("read extents of btrfs inode %d: %w", i.Ino, err)
		}
		if l.extentGeneration.Uint(e) > f.LastCommitted {
			return false, nil
		}
	}
	return true, nil
}

// Root returns the number of the subvolume that an inode is in: inode numbers are
// unique only within it.
func (f *Btrfs) Root(i *Inode) (uint64, error) {
	b, err := f.own(i)
	if err != nil {
		return 0, err
	}
	root, err := f.subvolume(f.layout.root.Pointer(b))
	if err != nil {
		return 0, fmt.Errorf("read subvolume of btrfs inode %d: %w", i.Ino, err)
	}
	return f.layout.rootID.Uint(root), nil
}

// treeOf returns where the tree that an inode is in begins: the address of its root block, in the file system's own addresses. own is
// what own returned for the inode.
func (f *Btrfs) treeOf(own []byte) (uint64, error) {
	root, err := f.subvolume(f.layout.root.Pointer(own))
	if err != nil {
		return 0, err
	}
	return f.c.k.U64(f.layout.trees.start.In(f.layout.trees.node.Pointer(root)))
}

// subvolume reads a btrfs_root of the file system.
func (f *Btrfs) subvolume(at addr.Virt) ([]byte, error) {
	b, err := f.c.k.Bytes(at, f.layout.rootSize)
	if err != nil {
		return nil, err
	}
	if owner := f.layout.rootInfo.Pointer(b); owner != f.s.info {
		return nil, fmt.Errorf("it belongs to the file system at %v", owner)
	}
	return b, nil
}

// Object IDs of btrfs trees (include/uapi/linux/btrfs_tree.h): the file tree of a new file
// system, and the first and last that a subvolume may have.
const (
	topSubvolume   = 5           // BTRFS_FS_TREE_OBJECTID
	firstSubvolume = 256         // BTRFS_FIRST_FREE_OBJECTID
	lastSubvolume  = 1<<64 - 256 // BTRFS_LAST_FREE_OBJECTID
)

// Internal reports whether an inode is known to be the file system's own: it is in a tree that is not a
// subvolume, as are the inodes of the free space cache (space_cache=v1) and those that blocks are
// relocated with.
func (f *Btrfs) Internal(i *Inode) bool {
	root, err := f.Root(i)
	return err == nil && root != topSubvolume && (root < firstSubvolume || root > lastSubvolume)
}
