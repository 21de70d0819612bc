package jbd2

import (
	"errors"
	"fmt"

	"understudy/addr"
	"understudy/ext4"
)

// ErrNotInUse says that the file system's superblock says that the journal is
// not in use, although it is not empty. A mount would empty it unread.
var ErrNotInUse = errors.New("the journal is not empty, but the file system does not need it")

// Stats is what a replay did.
type Stats struct {
	Transactions int // in the log
	Blocks       int // written to their home
	Superseded   int // versions of blocks that were not the last
	Revoked      int // versions of blocks that were revoked
	Next         TID // what the next transaction is to be numbered at least
}

// Replay writes the newest version of each block in the log to its home, marks
// the log empty, and has the file system say that its journal is not in use;
// each durably before the next. It does nothing else that a mount does: orphans
// remain. If it ends early, everything in the log is still there.
//
// It fails with ErrNotInUse, ErrFastCommits or what Scan returns before anything
// is written.
func (l *Log) Replay() (Stats, error) {
	scan, err := l.Scan()
	if err != nil {
		return Stats{}, fmt.Errorf("replay: %w", err)
	}
	stats, err := l.replay(scan)
	if err != nil {
		return stats, fmt.Errorf("replay: %w", err)
	}
	return stats, nil
}

func (l *Log) replay(scan *Scan) (Stats, error) {
	stats := Stats{Next: scan.Next}
	switch {
	case scan.Empty:
		return stats, l.setInUse(false)
	case !l.FS.Super.NeedsReplay():
		return stats, ErrNotInUse
	case scan.Fast.Tags > 0:
		return stats, ErrFastCommits
	case scan.Fast.Err != nil:
		return stats, scan.Fast.Err
	}
	newest := scan.Newest()
	revoked := scan.revoked()
	stats.Transactions, stats.Blocks = len(scan.Transactions), len(newest)
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
	for _, b := range newest {
		if err := l.restore(b); err != nil {
			return stats, err
		}
	}
	if err := l.sync(); err != nil {
		return stats, err
	}
	// The number after the one expected, so that what remains in the log of the
	// latter can never be completed (fs/jbd2/recovery.c, jbd2_journal_recover).
	stats.Next = scan.Next + 1
	empty := l.Super
	empty.Start, empty.Sequence = 0, stats.Next
	empty.dropFastCommit()
	if empty.Head != 0 {
		empty.Head = scan.End
	}
	if err := l.setSuper(empty); err != nil {
		return stats, err
	}
	return stats, l.setInUse(false)
}

// dropFastCommit has the log say that there are no fast commits, as an empty one
// does (fs/jbd2/journal.c, jbd2_mark_journal_empty): the area of fast commits
// belongs to the log then.
func (s *Super) dropFastCommit() {
	if s.FastCommit {
		s.FastCommit, s.FastFirst, s.FastLast, s.Last = false, 0, 0, s.Length
	}
}

// restore writes a block to its home.
func (l *Log) restore(b Newest) error {
	data, err := l.Read(b.LoggedBlock)
	if err != nil {
		return err
	}
	super, offset := l.FS.Super.Place()
	if b.Home == super {
		disk, err := l.FS.Block(super)
		if err != nil {
			return err
		}
		merged, err := ext4.Replayed(data[offset:], disk[offset:])
		if err != nil {
			return err
		}
		copy(data[offset:], merged)
	}
	return l.writeHome(addr.Block(b.Home), data)
}
