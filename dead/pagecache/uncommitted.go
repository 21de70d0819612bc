package pagecache

import (
	"errors"
	"fmt"
	"iter"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/kernel"
)

// Uncommitted returns a function that reports whether a change of a file's size, or of where its bytes lie, may be lost with the
// memory: what fdatasync(2) has to make durable besides the data. Pages of such a file may be clean, since they were written, and
// yet be in no file of the disk after its own recovery. It may report a file of which only something else was changed. It leaves out
// a file of the ext family that was written to, dropped from memory, and read again, all in one transaction. The function returns an
// error if the memory that it needs is not there; it is nil if no change of the file system waits. It must not be called from
// several goroutines at once.
func (c *Cache) Uncommitted(s *Superblock) (func(*Inode) (bool, error), error) {
	switch {
	case s.HasBuffers():
		return c.uncommittedExt(s)
	case s.Type == "xfs":
		x, err := c.XFS(s)
		if err != nil {
			return nil, err
		}
		return x.uncommitted, nil
	case s.Type == "btrfs":
		b, err := c.Btrfs(s)
		if err != nil {
			return nil, err
		}
		began := b.began()
		return func(i *Inode) (bool, error) { return b.uncommitted(i, began) }, nil
	}
	return func(i *Inode) (bool, error) { return i.queued, nil }, nil
}

// uncommitted leaves out files whose times alone were changed, as fdatasync does (fs/xfs/xfs_file.c, xfs_fsync_seq, and
// xfs_inode_item.c, xfs_inode_item_committing).
func (x *XFS) uncommitted(i *Inode) (bool, error) {
	l := x.layout
	committed, err := x.Committed(i)
	if err != nil || committed || !l.itemFsync.Present() && !l.itemDatasync.Present() {
		return !committed, err
	}
	b, err := x.own(i)
	if err != nil {
		return false, err
	}
	item, err := x.logItem(i, b)
	if err != nil || item == nil {
		return true, err
	}
	if l.itemDatasync.Present() && l.itemDatasync.Uint(item) != 0 || l.itemDirty.Uint(item)&^xfsTimes != 0 {
		return true, nil
	}
	return l.itemFsync.Present() && l.itemFsync.Uint(item)&^xfsTimes != 0, nil
}

// began returns when the only transaction began that is not committed, by the wall clock; zero if that is not known.
func (f *Btrfs) began() time.Time {
	l := f.layout
	clock, err := f.c.Clock()
	if err != nil || !f.single || !l.running.Present() || !l.began.Present() {
		return time.Time{}
	}
	at, err := f.c.k.Pointer(l.running.In(f.s.info))
	if err != nil || at == 0 {
		return time.Time{}
	}
	seconds, err := f.c.k.U64(l.began.In(at))
	if err != nil || seconds > uint64(clock.Uptime()/time.Second)+1 {
		return time.Time{}
	}
	return clock.wall(int64(seconds) * int64(time.Second))
}

// btrfsNoCOW is BTRFS_INODE_NODATACOW (include/uapi/linux/btrfs_tree.h).
const btrfsNoCOW = 1 << 1

// uncommitted leaves out a file that has the extents that the committed transaction has, and was not changed by a program since the
// transaction began: of this, only its access time was. A file that is written to in place may have grown without a new extent.
func (f *Btrfs) uncommitted(i *Inode, began time.Time) (bool, error) {
	committed, err := f.Committed(i)
	if err != nil || committed || began.IsZero() || !f.layout.inodeFlags.Present() || !i.Ctime.Before(began.Add(-maxLag)) {
		return !committed, err
	}
	b, err := f.own(i)
	if err != nil || f.layout.inodeFlags.Uint(b)&btrfsNoCOW != 0 {
		return true, err
	}
	kept, err := f.Kept(i)
	return !kept, err
}

// Dropped yields what the method of XFS or Btrfs does; nothing for other types.
func (c *Cache) Dropped(s *Superblock, listed map[addr.Virt]struct{}) iter.Seq[error] {
	var err error
	switch s.Type {
	case "xfs":
		var x *XFS
		if x, err = c.XFS(s); err == nil {
			return x.Dropped(listed)
		}
	case "btrfs":
		var b *Btrfs
		if b, err = c.Btrfs(s); err == nil {
			return b.Dropped(listed)
		}
	}
	return func(yield func(error) bool) {
		if err != nil {
			yield(err)
		}
	}
}

// extInodes finds out which files of a file system of the ext family are not committed.
type extInodes struct {
	d       *Device
	super   *ext4.Super
	tids    map[uint32]bool // open transactions; nil without a journal
	info    kernel.Field    // vfs_inode in ext4_inode_info
	tid     kernel.Field    // i_datasync_tid: the last transaction that changed its size or its extents
	jinode  kernel.Field    // not zero since it was opened for writing (fs/ext4/file.c, ext4_file_open)
	since   time.Time       // when the oldest open transaction began; zero if that is not known
	tables  map[uint32]addr.Block
	pending map[addr.Block]bool // blocks of inode tables
}

func (c *Cache) uncommittedExt(s *Superblock) (func(*Inode) (bool, error), error) {
	e, err := c.Ext4(s)
	if err != nil {
		return nil, err
	}
	x := &extInodes{super: &e.Super, tables: make(map[uint32]addr.Block), pending: make(map[addr.Block]bool)}
	if x.d, err = c.Device(s, nil); err != nil {
		return nil, err
	}
	if e.Journal != nil {
		clock, _ := c.Clock() // without it, more counts as changed
		x.tids, x.since, err = c.openTransactions(e.Journal, clock)
		if errors.Is(err, ErrClock) {
			x.tids, x.since, err = c.openTransactions(e.Journal, nil)
		}
		if err != nil || len(x.tids) == 0 {
			return nil, err
		}
		l := layoutIn(c.k, "ext4_inode_info", "ext4")
		x.info, x.tid, x.jinode = l.Field("vfs_inode"), l.Field("i_datasync_tid", 4), l.Field("jinode", 8)
		if err := l.Err(); err != nil {
			return nil, fmt.Errorf("read transactions: %w", err)
		}
	}
	return x.uncommitted, nil
}

// uncommitted reports whether an open transaction has changed a file so that fdatasync waits for it, and the file's block of the
// inode table.
func (x *extInodes) uncommitted(i *Inode) (bool, error) {
	if x.tids == nil && i.queued {
		return true, nil
	}
	if x.tids != nil {
		if changed, err := x.changed(i); !changed || err != nil {
			return false, err
		}
	}
	return x.inTransaction(i)
}

// changed reports whether an open transaction may have changed a file. An inode also has the number of the transaction in which it was
// only read from the disk (fs/ext4/inode.c, __ext4_iget).
func (x *extInodes) changed(i *Inode) (bool, error) {
	at := i.Addr - addr.Virt(x.info.Off)
	tid, err := x.d.c.k.U32(x.tid.In(at))
	if err != nil || !x.tids[tid] {
		return false, err
	}
	if x.since.IsZero() || !i.Ctime.Before(x.since.Add(-maxLag)) {
		return true, nil
	}
	jinode, err := x.d.c.k.Pointer(x.jinode.In(at))
	return jinode != 0, err
}

// inTransaction reports whether a file's block of the inode table is on its way to the disk.
func (x *extInodes) inTransaction(i *Inode) (bool, error) {
	group, block, _, err := x.super.InodeLocation(i.Ino)
	if err != nil {
		return false, err
	}
	table, err := x.table(group)
	if err != nil {
		return false, err
	}
	at := table + addr.Block(block)
	pending, ok := x.pending[at]
	if !ok {
		if pending, err = x.d.pending(at, int(x.super.BlockSize)); err != nil {
			return false, fmt.Errorf("read inode %d: %w", i.Ino, err)
		}
		x.pending[at] = pending
	}
	return pending, nil
}

// table returns the first block of a group's inode table.
func (x *extInodes) table(group uint32) (addr.Block, error) {
	if at, ok := x.tables[group]; ok {
		return at, nil
	}
	home, offset := x.super.DescriptorLocation(group)
	b, err := x.d.Meta(home, int(x.super.BlockSize))
	if err != nil {
		return 0, fmt.Errorf("read group %d: %w", group, err)
	}
	at := x.super.GroupBlocks(b[offset : offset+int(x.super.DescSize)])[2]
	x.tables[group] = at
	return at, nil
}
