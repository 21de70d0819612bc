package jbd2

import (
	"errors"
	"fmt"
)

// ErrNotInUse says that the file system's superblock says that the journal is
// not in use, although it is not empty. A mount would empty it unread.
var ErrNotInUse = errors.New("the journal is not empty, but the file system lacks needs_recovery: a mount would empty it unread")

// Stats is what a replay did.
type Stats struct {
	Transactions int // in the log
	Blocks       int // written to their home
	Superseded   int // versions of blocks that were not the last
	Revoked      int // versions of blocks that were revoked
	Next         TID // what the next transaction is to be numbered at least
}

// Replay writes the newest version of each block in the log to its home, durably;
// then it marks the log empty, durably; and last it has the file system say that
// its journal is not in use. It does nothing else that a mount does: orphans
// remain. If it ends early, everything in the log is still there.
//
// It fails with ErrNotInUse, ErrFastCommits or what Scan returns before anything
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
	stats, err := l.restore(scan)
	if err != nil {
		return stats, err
	}
	w := &writer{l: l}
	empty := l.Super
	if !scan.Empty {
		// The number after the one expected, so that what remains in the log of the
		// latter can never be completed (fs/jbd2/recovery.c, jbd2_journal_recover).
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
	// This need not be durable: a mount finds nothing to replay without it, too.
	if err := w.inUse(false); err != nil {
		return stats, err
	}
	if err := w.flush(); err != nil {
		return stats, err
	}
	return stats, l.reload(empty)
}

// restore writes the blocks in the log to their homes, durably.
func (l *Log) restore(scan *Scan) (Stats, error) {
	stats := Stats{Next: scan.Next, Transactions: len(scan.Transactions)}
	if !scan.Empty && !l.FS.Super.NeedsReplay() {
		return stats, ErrNotInUse
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

// dropFastCommit has the log say that there are no fast commits, as an empty one
// does (fs/jbd2/journal.c, jbd2_mark_journal_empty): the area of fast commits
// belongs to the log then.
func (s *Super) dropFastCommit() {
	if s.FastCommit {
		s.FastCommit, s.FastFirst, s.FastLast, s.Last = false, 0, 0, s.Length
	}
}
