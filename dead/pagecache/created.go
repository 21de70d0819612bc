package pagecache

import (
	"errors"
	"fmt"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// Birth says whether the disk has an inode at all.
type Birth int

// An inode is Unborn if the transaction that creates it was never committed.
const (
	BirthUnknown Birth = iota
	Born
	Unborn
)

// Births distinguishes inodes that were created in a transaction that the journal
// had not committed from those that exist on the disk.
//
// It compares when the inode was created (i_crtime) with when the oldest open
// transaction began (t_start_time). A transaction begins only after the one before
// takes no more changes. The creation time comes from a clock that lags by a tick
// or, on a busy machine, by several: an inode created shortly before that beginning
// cannot be classified, and no inode can be if the wall clock was set since.
type Births struct {
	c      *Cache
	since  time.Time // beginning of the oldest open transaction; zero if none is open
	tids   map[uint32]bool
	inode  kernel.Field // vfs_inode in ext4_inode_info
	size   int
	tid    kernel.Field // i_sync_tid: of the last transaction that changed the inode
	create timeField
}

// maxLag is how far the coarse clock may be behind; 7 ms were seen in a guest.
const maxLag = time.Second

// Births reads the open transactions of a file system of the ext family. Without
// a journal the births are not known, and the error wraps kernel.ErrNotFound.
func (c *Cache) Births(s *Superblock, clock *Clock) (*Births, error) {
	e, err := c.Ext4(s)
	switch {
	case err != nil:
		return nil, fmt.Errorf("read transactions: %w", err)
	case e.Journal == nil:
		return nil, fmt.Errorf("read transactions: journal of %s: %w", s.ID, kernel.ErrNotFound)
	case clock == nil:
		return nil, fmt.Errorf("read transactions: %w", ErrClock)
	}
	i := layoutIn(c.k, "ext4_inode_info", "ext4")
	n := &Births{c: c, size: i.Size}
	n.inode, n.tid = i.Field("vfs_inode"), i.Field("i_sync_tid", 4)
	n.create = timeField{sec: i.Field("i_crtime.tv_sec", 8), nsec: i.Field("i_crtime.tv_nsec", 8)}
	if err := i.Err(); err != nil {
		return nil, fmt.Errorf("read transactions: %w", err)
	}
	if n.tids, n.since, err = c.openTransactions(e.Journal, clock); err != nil {
		return nil, err
	}
	return n, nil
}

// openTransactions returns the numbers of the transactions of jbd2 that are not committed, and when the oldest of them began by the
// wall clock; without a clock, or such a transaction, zero. An error that wraps ErrClock says that one began at no possible time.
func (c *Cache) openTransactions(in *Journal, clock *Clock) (tids map[uint32]bool, since time.Time, err error) {
	j := layoutIn(c.k, "journal_s", "jbd2", "ext4")
	t := layoutIn(c.k, "transaction_s", "jbd2", "ext4")
	open := []kernel.Field{j.Field("j_committing_transaction", 8), j.Field("j_running_transaction", 8)}
	tid, start := t.Field("t_tid", 4), t.Field("t_start_time", 8)
	if err := errors.Join(j.Err(), t.Err()); err != nil {
		return nil, since, fmt.Errorf("read transactions: %w", err)
	}
	tids = make(map[uint32]bool)
	for _, f := range open {
		at, err := c.k.Pointer(f.In(in.Addr))
		if err != nil {
			return nil, since, fmt.Errorf("read transactions: %w", err)
		}
		if at == 0 {
			continue
		}
		b, err := c.k.Bytes(at, t.Size)
		if err != nil {
			return nil, since, fmt.Errorf("read transactions: %w", err)
		}
		tids[uint32(tid.Uint(b))] = true
		if clock == nil {
			continue
		}
		began := clock.wall(int64(start.Uint(b)))
		if began.Before(clock.Boot) || began.After(clock.Now.Add(time.Second)) {
			return nil, since, fmt.Errorf("read transactions: %w: one began at %v", ErrClock, began)
		}
		if since.IsZero() || began.Before(since) {
			since = began
		}
	}
	return tids, since, nil
}

// Changed reports whether a transaction that was not committed may have changed an inode. An inode also has the number of
// the transaction in which it was only read from the disk (fs/ext4/inode.c, __ext4_iget).
func (n *Births) Changed(i *Inode) bool {
	if n == nil {
		return i.queued
	}
	tid, err := n.c.k.U32(n.tid.In(i.Addr - addr.Virt(n.inode.Off)))
	return err != nil || n.tids[tid] && !i.Ctime.Before(n.since.Add(-maxLag))
}

// Of says whether an inode is on the disk.
func (n *Births) Of(i *Inode) Birth {
	if n == nil {
		return BirthUnknown
	}
	b, err := n.c.k.Bytes(i.Addr-addr.Virt(n.inode.Off), n.size)
	if err != nil {
		return BirthUnknown
	}
	created, plausible := n.create.in(b)
	switch {
	case !n.tids[uint32(n.tid.Uint(b))]:
		return Born // no open transaction has changed it
	case !plausible:
		return BirthUnknown
	case created.Before(n.since.Add(-maxLag)):
		return Born
	case !created.Before(n.since):
		return Unborn
	}
	return BirthUnknown
}
