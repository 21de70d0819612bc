package jbd2

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/ext4"
)

// ErrNotInUse says that the journal is not empty, although the file system's superblock
// says that it is not in use. A mount would empty it unread.
var ErrNotInUse = errors.New("the journal is not empty, but the file system lacks needs_recovery: a mount would empty it unread")

// Stats is what a replay did.
type Stats struct {
	Transactions int // in the log
	Blocks       int // written to their home
	Superseded   int // versions of blocks that were not the last
	Revoked      int // versions of blocks that were revoked
	Next         TID // lowest number for the next transaction
}

// Replay writes the newest version of each block in the log to its home, durably;
// then it marks the log empty, durably; and last it makes the file system say that
// its journal is not in use. It does nothing else that a mount does: orphans
// remain. If it ends early, everything in the log is still there.
//
// It fails with ErrNotInUse, ErrFastCommits or what Scan or Scan.Whole returns before anything
// is written.
func (l *Log) Replay() (Stats, error) {
	stats, err := l.replay()
	if err != nil {
		return stats, fmt.Errorf("replay: %w", err)
	}
	return stats, nil
}

func (l *Log) replay() (Stats, error) {
	scan, err := l.Scan()
	if err != nil {
		return Stats{}, err
	}
	if scan.Fast.Tags > 0 {
		return Stats{}, ErrFastCommits
	}
	if scan.Fast.Err != nil {
		return Stats{}, scan.Fast.Err
	}
	return l.empty(scan)
}

// empty replays what a scan found, and empties the log. It does not replay fast commits: what they say is lost.
func (l *Log) empty(scan *Scan) (Stats, error) {
	stats, err := l.restore(scan)
	if err != nil {
		return stats, err
	}
	w := &writer{l: l}
	empty := l.Super
	if !scan.Empty {
		// One more than the expected number, so that what remains in the log of a transaction
		// with that number can never be completed (fs/jbd2/recovery.c, jbd2_journal_recover).
		stats.Next = scan.Next + 1
		empty.Start, empty.Sequence = 0, stats.Next
		empty.dropFastCommit()
		if empty.Head != 0 {
			empty.Head = scan.End
		}
		if err := w.super(&empty); err != nil {
			return stats, err
		}
		if err := w.sync(); err != nil {
			return stats, err
		}
	}
	// This need not be durable: without it, too, a mount finds nothing to replay.
	if err := w.inUse(false); err != nil {
		return stats, err
	}
	if err := w.flush(); err != nil {
		return stats, err
	}
	return stats, l.reload(empty)
}

// Recovered returns a disk as a replay of the transactions that a scan found leaves it, and the file system on
// it. Nothing is written to the log's disk. Fast commits are left out: what they say is in the memory of the kernel
// that wrote them, in the transaction that they belong to (fs/ext4/fast_commit.c, ext4_fc_commit).
func (l *Log) Recovered(scan *Scan) (*ext4.FS, *Recording, error) {
	after := *l
	disk := NewRecording(l.disk)
	after.disk, after.FS = disk, l.FS.On(disk)
	if _, err := after.empty(scan); err != nil {
		return nil, nil, fmt.Errorf("replay in memory: %w", err)
	}
	return after.FS, disk, nil
}

// MakeRoom replays the log, and returns where a transaction can then begin, with all the room that there is. If the
// log has fast commits, they stay as valid as before: the log is not marked empty, but begins with the transaction
// that they are for, as it does if a kernel has written all others to their homes (fs/jbd2/journal.c,
// jbd2_journal_get_log_tail). It fails with ErrNotInUse or what Scan or Scan.Whole returns before anything is written.
func (l *Log) MakeRoom() (Start, Stats, error) {
	scan, err := l.Scan()
	if err != nil {
		return Start{}, Stats{}, fmt.Errorf("make room in the journal: %w", err)
	}
	if scan.Fast == (FastCommits{}) {
		stats, err := l.Replay()
		return Start{l.Super.First, stats.Next}, stats, err
	}
	at := Start{l.Super.First, scan.Next}
	stats, err := l.checkpoint(scan, at)
	if err != nil {
		return at, stats, fmt.Errorf("make room in the journal: %w", err)
	}
	return at, stats, nil
}

// checkpoint replays what a scan found, and makes the log begin elsewhere, at a block where nothing may be that a
// recovery takes for the next transaction.
func (l *Log) checkpoint(scan *Scan, at Start) (Stats, error) {
	there, err := l.scan(at)
	if err == nil && len(there.Transactions) > 0 {
		err = fmt.Errorf("block %d of the journal has remains of transaction %d", at.Block, at.Sequence)
	}
	if err != nil {
		return Stats{}, err
	}
	stats, err := l.restore(scan)
	if err != nil {
		return stats, err
	}
	w, moved := &writer{l: l}, l.Super
	moved.Start, moved.Sequence = at.Block, at.Sequence
	if err := w.super(&moved); err != nil {
		return stats, err
	}
	if err := w.sync(); err != nil {
		return stats, err
	}
	return stats, l.reload(moved)
}

// restore writes the blocks in the log to their homes, durably.
func (l *Log) restore(scan *Scan) (Stats, error) {
	stats := Stats{Next: scan.Next, Transactions: len(scan.Transactions)}
	if !scan.Empty && !l.FS.Super.NeedsReplay() {
		return stats, ErrNotInUse
	}
	if err := scan.Whole(); err != nil {
		return stats, err
	}
	newest := scan.Newest()
	revoked := scan.revoked()
	for _, t := range scan.Transactions {
		for _, b := range t.Blocks {
			if revoked.since(b.Home, t.Sequence) {
				stats.Revoked++
			} else {
				stats.Superseded++
			}
		}
	}
	stats.Superseded -= len(newest)
	if len(newest) == 0 {
		return stats, nil
	}
	w, in := &writer{l: l}, &reader{l: l}
	for _, b := range newest {
		if err := w.restore(in, b.LoggedBlock); err != nil {
			return stats, err
		}
	}
	stats.Blocks = len(newest)
	return stats, w.sync()
}

// dropFastCommit makes the log say that there are no fast commits, as an empty one
// does (fs/jbd2/journal.c, jbd2_mark_journal_empty): their area then
// belongs to the log.
func (s *Super) dropFastCommit() {
	if s.FastCommit {
		s.FastCommit, s.FastFirst, s.FastLast, s.Last = false, 0, 0, s.Length
	}
}
