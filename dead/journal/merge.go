package journal

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/pagecache"
)

// Case is how the log on the disk and the transactions in memory fit together.
type Case int

// The cases. In any other the last commit is not written.
const (
	Nothing    Case = iota // there is nothing to commit
	Running                // the log ends before the running transaction
	Committing             // the log ends before the committing one, parts of which may be there
	Committed              // the log ends after the committing one, whose commit block was written
	Finished               // the log has all of it: this rescue was here before
)

func (c Case) String() string {
	return [...]string{"nothing to commit", "running", "committing", "committed", "finished before"}[c]
}

// ErrLog is wrapped where the log on the disk is not what the dead kernel left.
var ErrLog = errors.New("the log on the disk is not what the dead kernel left: another copy, or mounted since")

// Follows checks that a log can be the one that a kernel left, by what that kernel had in
// memory about it: no transaction is missing from the log, and there is none that the kernel did
// not know of. A log that an earlier rescue left passes. An error wraps ErrLog.
func Follows(in *pagecache.Journal, scan *jbd2.Scan) error {
	// Transactions are numbered consecutively, and this is the first that memory does not call committed.
	oldest := in.CommitSequence + 1
	if in.Aborted && int32(uint32(scan.Next)-oldest) <= 0 {
		return nil // the disk may have nothing of what counts as committed
	}
	begun := int32(in.NextTransaction-oldest) > 0 // a transaction with the number oldest had begun
	switch ahead := int32(uint32(scan.Next) - oldest); {
	case ahead == 0, ahead == 1 && begun:
		// One more: the committing transaction, or one that a rescue appended, is in the log.
		return nil
	case scan.Empty && ahead >= -1 && ahead <= 1, scan.Empty && ahead == 2 && begun:
		// A mount numbers its first transaction one above s_sequence, and a replay
		// sets s_sequence to one above the next number.
		return nil
	}
	return fmt.Errorf("%w: it goes on with transaction %d; in memory %d was the last to be committed, and %d the next to begin",
		ErrLog, scan.Next, in.CommitSequence, in.NextTransaction)
}

// fit returns which case it is, and where in the log the merged transaction begins.
func (j *Journal) fit(scan *jbd2.Scan) (Case, jbd2.Start, error) {
	c, n := j.Committing, j.Running
	oldest := c
	if c == nil {
		oldest = n
	}
	if oldest == nil {
		return Nothing, jbd2.Start{}, j.ends(scan)
	}
	ahead := int32(uint32(scan.Next) - oldest.ID)
	at := jbd2.Start{Block: scan.End, Sequence: scan.Next}
	switch {
	case scan.Empty && ahead >= -1 && ahead <= 1:
		// A mount numbers its first transaction one above s_sequence: ahead is -1. It is 1
		// where this rescue emptied the log, for want of room, and went no further.
		if ahead < 1 {
			at.Sequence = jbd2.TID(oldest.ID)
		}
		return j.begun(), at, nil
	case scan.Empty && ahead == 2 && c != nil:
		// This rescue emptied a log that ended after the committing transaction, and went no further. Anybody else
		// who empties it changes times in the superblock (salvage.Plan.Check).
		return j.committed(), at, nil
	case scan.Empty:
	case ahead == 0 && c != nil && scan.End == jbd2.Pos(c.LogStart),
		ahead == 0 && c == nil && scan.End == jbd2.Pos(j.Head):
		return j.begun(), at, nil
	case ahead == 1 && c != nil && scan.End == jbd2.Pos(j.Head):
		return j.committed(), at, nil
	case len(scan.Transactions) > 0 || scan.End != jbd2.Pos(j.First):
	// This rescue made room in a log with fast commits, and went no further (jbd2.Log.MakeRoom).
	case ahead == 0:
		return j.begun(), at, nil
	case ahead == 1 && c != nil:
		return j.committed(), at, nil
	}
	return Nothing, at, fmt.Errorf("%w: it goes on with transaction %d at block %d; in memory %s, and the head is %d",
		ErrLog, scan.Next, scan.End, j.describe(), j.Head)
}

// ends checks that the log ends with the last committed transaction, where none
// was open. An empty log may have been replayed by this rescue before.
func (j *Journal) ends(scan *jbd2.Scan) error {
	ahead := int32(uint32(scan.Next) - (j.Committed + 1))
	if scan.Empty && ahead >= -1 && ahead <= 1 || ahead == 0 && scan.End == jbd2.Pos(j.Head) {
		return nil
	}
	return fmt.Errorf("%w: it goes on with transaction %d at block %d; in memory %d was the last, none was open, and the head is %d",
		ErrLog, scan.Next, scan.End, j.Committed, j.Head)
}

// begun returns the case in which nothing of what is in memory is committed.
func (j *Journal) begun() Case {
	if j.Committing != nil {
		return Committing
	}
	return Running
}

// committed returns the case in which the committing transaction is committed.
func (j *Journal) committed() Case {
	if j.Running == nil {
		return Nothing
	}
	return Committed
}

func (j *Journal) describe() string {
	s := ""
	if t := j.Committing; t != nil {
		s += fmt.Sprintf("transaction %d is committing from block %d on, ", t.ID, t.LogStart)
	}
	if t := j.Running; t != nil {
		s += fmt.Sprintf("transaction %d is running", t.ID)
	} else {
		s += "none is running"
	}
	return s
}

// merge makes one transaction of the unfinished ones. A block that is
// revoked, and nevertheless in the transaction, is not revoked: a revocation would also
// apply to its own transaction (fs/jbd2/revoke.c).
func (j *Journal) merge(log *jbd2.Log, scan *jbd2.Scan, written []addr.Block) (*jbd2.Transaction, error) {
	content := j.newest()
	home, _ := log.FS.Super.Location()
	limit, err := log.Limit(scan, content[home].Data)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	out := &jbd2.Transaction{Blocks: make([]jbd2.Block, 0, len(content))}
	for _, b := range content {
		if uint64(b.Block) >= limit || b.Block < addr.Block(log.FS.Super.FirstDataBlock) || log.Contains(b.Block) {
			return nil, fmt.Errorf("%w: block %d, outside of the file system or in its journal, is to be committed", ErrDamaged, b.Block)
		}
		data := b.Data
		if b.Trigger {
			var err error
			if data, err = fireTrigger(log.FS, b); err != nil {
				return nil, err
			}
		}
		out.Blocks = append(out.Blocks, jbd2.Block{Home: b.Block, Data: data})
	}
	slices.SortFunc(out.Blocks, func(a, b jbd2.Block) int { return cmp.Compare(a.Home, b.Home) })
	for _, b := range slices.Concat(j.Revoked, written) {
		if uint64(b) >= limit {
			return nil, fmt.Errorf("%w: block %d, outside of the file system, is revoked", ErrDamaged, b)
		}
		if _, there := content[b]; !there {
			out.Revokes = append(out.Revokes, b)
		}
	}
	slices.Sort(out.Revokes)
	out.Revokes = slices.Compact(out.Revokes)
	return out, nil
}

// writtenRevokes returns the blocks whose revoke records the committing transaction had already
// written to the log, so that they are no longer in its table (fs/jbd2/revoke.c,
// jbd2_journal_write_revoke_records). These blocks of the log are in memory, since
// they go to the disk through the cache of the device.
func (j *Journal) writtenRevokes(log *jbd2.Log, dev *pagecache.Device) ([]addr.Block, error) {
	var out []addr.Block
	for at := j.Committing.LogStart; at != j.Head; {
		home, err := log.Where(jbd2.Pos(at))
		if err != nil {
			return nil, err
		}
		b, err := dev.Meta(home, j.BlockSize)
		if err != nil {
			return nil, err
		}
		blocks, err := log.Super.Revokes(jbd2.TID(j.Committing.ID), b)
		if err != nil {
			return nil, fmt.Errorf("%w: block %d of the log: %w", ErrDamaged, at, err)
		}
		out = append(out, blocks...)
		if at++; at == j.Last {
			at = j.First
		}
	}
	return out, nil
}

// fireTrigger returns a block as the file system changes it on its way to the log.
// ext4 does so only with blocks of its orphan file: it sets their checksum
// (fs/ext4/orphan.c, ext4_orphan_file_block_trigger).
func fireTrigger(fs *ext4.FS, b Buffer) ([]byte, error) {
	if fs.Super.OrphanFile == 0 {
		return nil, fmt.Errorf("%w: block %d has a commit trigger, but the file system has no orphan file", ErrDamaged, b.Block)
	}
	inode, err := fs.Inode(fs.Super.OrphanFile)
	if err != nil {
		return nil, fmt.Errorf("orphan file: %w", err)
	}
	data := slices.Clone(b.Data)
	if err := fs.Super.SealOrphanBlock(inode, b.Block, data); err != nil {
		return nil, fmt.Errorf("%w: block %d has a commit trigger: %w", ErrDamaged, b.Block, err)
	}
	return data, nil
}

// finished reports whether a disk already has a merged transaction: as the last one
// in its log, or with all of its blocks written home. The superblock is not compared, because
// of what it says about the journal and errors.
func finished(log *jbd2.Log, scan *jbd2.Scan, t *jbd2.Transaction) (bool, error) {
	super, _ := log.FS.Super.Location()
	want := slices.DeleteFunc(slices.Clone(t.Blocks), func(b jbd2.Block) bool { return b.Home == super })
	read := func(b addr.Block) ([]byte, error) {
		if uint64(b) >= log.FS.Super.Blocks {
			return nil, nil // the file system was to grow
		}
		return log.FS.Block(b)
	}
	if !scan.Empty {
		if len(scan.Transactions) == 0 {
			return false, nil
		}
		last := scan.Transactions[len(scan.Transactions)-1]
		there := make(map[addr.Block]jbd2.LoggedBlock, len(last.Blocks))
		for _, b := range last.Blocks {
			there[b.Home] = b
		}
		if delete(there, super); len(there) != len(want) || !slices.Equal(last.Revokes, t.Revokes) {
			return false, nil
		}
		read = func(b addr.Block) ([]byte, error) {
			logged, ok := there[b]
			if !ok {
				return nil, nil
			}
			return log.Read(logged)
		}
	}
	for _, b := range want {
		data, err := read(b.Home)
		if err != nil || !bytes.Equal(data, b.Data) {
			return false, err
		}
	}
	return len(t.Blocks) > 0, nil
}
