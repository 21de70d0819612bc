package jbd2

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"understudy.dev/understudy/dead/addr"
)

// Start is where a transaction begins in the log.
type Start struct {
	Block    Pos
	Sequence TID
}

// Transaction is what is to be added to a log.
type Transaction struct {
	Blocks  []Block
	Revokes []addr.Block // blocks whose older versions must not be replayed
	Time    time.Time    // of its commit; the time of the transaction before if that is later
	Mark    Mark
}

// Mark tells our transactions from any others once they are in the log. It lies in the unused part of
// a commit block's header (include/linux/jbd2.h, struct commit_header: only the first element of
// h_chksum is used), and is covered by the commit block's checksum.
type Mark [28]byte

// Block is a block of the file system, and its new content.
type Block struct {
	Home addr.Block
	Data []byte // of the file system's block size
}

// ErrNoRoom is what a *NoRoomError wraps.
var ErrNoRoom = errors.New("no room in the journal")

// NoRoomError says that a transaction does not fit into the free part of the log.
// After a replay all of the log is free.
type NoRoomError struct {
	Need, Free uint32 // in blocks
}

func (e *NoRoomError) Error() string {
	return fmt.Sprintf("%v: %d blocks are needed, %d are free", ErrNoRoom, e.Need, e.Free)
}

func (e *NoRoomError) Unwrap() error { return ErrNoRoom }

// ErrStart says that a transaction cannot begin at its Start.
var ErrStart = errors.New("the transaction does not begin where the log ends")

// Pending is a transaction that is in the log except for its commit block: no
// recovery sees it.
type Pending struct {
	Start
	CommitAt Pos // where the commit block goes
	End      Pos // the block after it

	log   *Log
	block []byte // the commit block
	first bool   // it is the first in the log
	done  bool
}

// Append writes a transaction into the log except for its commit block, makes it
// durable, and verifies that a recovery would find exactly that once the commit
// block is there. In a log that is not empty, it must begin where Scan says that
// the log ends, with the next number; in an empty log, anywhere, with
// a number not before s_sequence. A transaction that is partly there is
// overwritten.
//
// It fails with ErrStart, ErrNotInUse, a *NoRoomError, what Scan returns, or
// because the transaction contradicts itself, before anything is written.
func (l *Log) Append(at Start, t *Transaction) (*Pending, error) {
	p, err := l.append(at, t)
	if err != nil {
		return nil, fmt.Errorf("append transaction %d: %w", at.Sequence, err)
	}
	return p, nil
}

func (l *Log) append(at Start, t *Transaction) (*Pending, error) {
	scan, err := l.Scan()
	if err != nil {
		return nil, err
	}
	if err := l.accept(scan, at, t); err != nil {
		return nil, err
	}
	if l.grown, err = l.limit(scan); err != nil {
		return nil, err
	}
	written := l.Super.encode(at, t, scan.after(t.Time))
	p := &Pending{Start: at, log: l, first: len(scan.Transactions) == 0, block: written.commit}
	p.CommitAt = l.Super.advance(at.Block, uint32(len(written.blocks)))
	p.End = l.Super.advance(p.CommitAt, 1)
	used := l.Super.distance(scan.Start, scan.End)
	if scan.Empty {
		used = 0
	}
	need := uint32(len(written.blocks)) + 1
	if free := l.Super.free(at, used); need > free {
		return nil, &NoRoomError{need, free}
	}
	w := &writer{l: l}
	if p.first {
		// After a failed fsync the beginning of the log may be in the host's cache only, and
		// the blocks that are overwritten now must no longer be in use.
		err := w.super(&l.Super)
		if err == nil {
			err = w.sync()
		}
		if err != nil {
			return nil, err
		}
	}
	if err := l.removeStrays(at, need, l.Super.room()-used); err != nil {
		return nil, err
	}
	for n, b := range written.blocks {
		if err := w.journal(l.Super.advance(at.Block, uint32(n)), b); err != nil {
			return nil, err
		}
	}
	if err := w.sync(); err != nil {
		return nil, err
	}
	if err := p.verify(written, t); err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	return p, nil
}

// free returns how long a transaction can be, in blocks, if used blocks are taken. At
// least one block stays free (fs/jbd2/journal.c, jbd2_journal_next_log_block). With
// fast commits a transaction must not wrap around: e2fsck 1.47.0 then takes their area
// for the end of the log (its recovery.c, wrap).
func (s *Super) free(at Start, used uint32) uint32 {
	free := s.room() - used - 1
	if s.FastCommit {
		free = min(free, uint32(s.Last-at.Block)-1)
	}
	return free
}

// accept checks where a transaction begins, and that it contradicts neither itself
// nor the file system.
func (l *Log) accept(scan *Scan, at Start, t *Transaction) error {
	switch {
	case at.Block < l.Super.First || at.Block >= l.Super.Last:
		return fmt.Errorf("%w: block %d of a log of [%d, %d)", ErrStart, at.Block, l.Super.First, l.Super.Last)
	case scan.Empty && at.Sequence.before(scan.Next):
		return fmt.Errorf("%w: the empty log continues with sequence %d", ErrStart, scan.Next)
	case !scan.Empty && (at.Block != scan.End || at.Sequence != scan.Next):
		return fmt.Errorf("%w: at block %d, instead of block %d with sequence %d", ErrStart, at.Block, scan.End, scan.Next)
	case !scan.Empty && !l.FS.Super.NeedsReplay():
		return ErrNotInUse
	case len(t.Blocks) == 0 && len(t.Revokes) == 0:
		return errors.New("the transaction has no blocks and revokes none")
	case t.Time.Unix() < 0:
		return errors.New("the transaction has no commit time")
	}
	homes := make(map[addr.Block]bool)
	for _, b := range t.Blocks {
		switch {
		case len(b.Data) != int(l.Super.BlockSize):
			return fmt.Errorf("block %d has %d bytes", b.Home, len(b.Data))
		case homes[b.Home]:
			return fmt.Errorf("block %d is in the transaction twice", b.Home)
		}
		if err := l.acceptHome(b.Home); err != nil {
			return err
		}
		homes[b.Home] = true
	}
	for _, b := range t.Revokes {
		if homes[b] {
			return fmt.Errorf("block %d is revoked twice, or both logged and revoked", b)
		}
		if err := l.acceptHome(b); err != nil {
			return err
		}
		homes[b] = true
	}
	return nil
}

func (l *Log) acceptHome(b addr.Block) error {
	switch {
	case !l.Super.Is64Bit && b > 1<<32-1:
		return fmt.Errorf("block %d does not fit into the journal's 32-bit block numbers", b)
	case l.Contains(b):
		return fmt.Errorf("block %d is in the journal", b)
	}
	return nil
}

// after returns a time, or that of the last transaction if it is later: a recovery tells
// the remains of older logs by the order of the times (scanner.commit).
func (s *Scan) after(t time.Time) time.Time {
	if n := len(s.Transactions); n > 0 && s.Transactions[n-1].Time.After(t) {
		return s.Transactions[n-1].Time
	}
	return t
}

// encoded is a transaction as it is laid out in the log.
type encoded struct {
	blocks [][]byte // all but the commit block
	data   []int    // which of them are the transaction's own blocks
	commit []byte
}

// encode lays a transaction out as fs/jbd2/commit.c does
// (jbd2_journal_commit_transaction): revoke blocks, then descriptor blocks, each
// followed by the blocks that it describes.
func (s *Super) encode(at Start, t *Transaction, committed time.Time) *encoded {
	e := &encoded{blocks: s.encodeRevokes(at.Sequence, t.Revokes)}
	tailed := 0
	if s.tailed() {
		tailed = tailSize
	}
	sum := ^uint32(0)
	for rest := t.Blocks; len(rest) > 0; {
		descriptor := make([]byte, s.BlockSize)
		putHeader(descriptor, descriptorBlock, at.Sequence)
		first := len(e.blocks)
		e.blocks = append(e.blocks, descriptor)
		for offset, last := headerSize, false; !last; rest = rest[1:] {
			data, flags := escape(rest[0].Data)
			end := offset + s.TagSize()
			if offset == headerSize {
				end += uuidSize // which stays zero, as it does in the kernel (j_uuid)
			} else {
				flags |= flagSameUUID
			}
			if last = len(rest) == 1 || len(descriptor)-end < s.TagSize()+uuidSize+tailed; last {
				flags |= flagLast
			}
			s.putTag(descriptor[offset:], tag{rest[0].Home, flags, s.blockChecksum(at.Sequence, data)})
			e.data = append(e.data, len(e.blocks))
			e.blocks = append(e.blocks, data)
			offset = end
		}
		s.putTail(descriptor)
		if s.Checksum == ChecksumV1 {
			for _, b := range e.blocks[first:] {
				sum = crc32be(sum, b)
			}
		}
	}
	e.commit = make([]byte, s.BlockSize)
	s.putCommit(e.commit, at.Sequence, sum, committed, t.Mark)
	return e
}

// escape returns a block as it is stored in the log, where only the log's own
// blocks begin with magic.
func escape(b []byte) (data []byte, flags uint16) {
	if !parseHeader(b).valid {
		return b, 0
	}
	data = slices.Clone(b)
	clear(data[:4])
	return data, flagEscape
}

// encodeRevokes makes the revoke blocks (fs/jbd2/revoke.c,
// jbd2_journal_write_revoke_records).
func (s *Super) encodeRevokes(sequence TID, revokes []addr.Block) [][]byte {
	var blocks [][]byte
	var b []byte
	tailed := 0
	if s.tailed() {
		tailed = tailSize
	}
	used := 0
	finish := func() {
		if b != nil {
			putUint32(b[headerSize:], uint32(used))
			s.putTail(b)
			blocks = append(blocks, b)
		}
	}
	for _, r := range revokes {
		if b == nil || used+s.revokeSize() > len(b)-tailed {
			finish()
			b, used = make([]byte, s.BlockSize), revokeHeaderSize
			putHeader(b, revokeBlock, sequence)
		}
		if s.Is64Bit {
			putUint64(b[used:], uint64(r))
		} else {
			putUint32(b[used:], uint32(r))
		}
		used += s.revokeSize()
	}
	finish()
	return blocks
}

// removeStrays removes commit blocks with the transaction's number from the
// free part of the log: while the transaction is written over the remains of another with
// the same number, such a commit block could make a mixture of both look whole. There is
// one only if a disk wrote the dead kernel's blocks out of order.
func (l *Log) removeStrays(at Start, need, free uint32) error {
	w, in, found, look := &writer{l: l}, &reader{l: l}, false, need
	for n := uint32(0); n < look; n++ {
		p := l.Super.advance(at.Block, n)
		b, err := in.block(p)
		if err != nil {
			return err
		}
		h := parseHeader(b)
		if !h.valid || h.sequence != at.Sequence {
			continue
		}
		look = free // a descriptor that remains may lead anywhere
		if h.kind == commitBlock {
			found = true
			if err := w.journal(p, make([]byte, len(b))); err != nil {
				return err
			}
		}
	}
	if found {
		return w.sync()
	}
	return nil
}

// verify reads back what was written, and then reads the log as a recovery would once
// the commit block is there.
func (p *Pending) verify(written *encoded, t *Transaction) error {
	l, in := p.log, &reader{l: p.log}
	for n, want := range written.blocks {
		at := l.Super.advance(p.Block, uint32(n))
		got, err := in.block(at)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("block %d of the journal is not what was written", at)
		}
	}
	future := *l
	overlay := NewRecording(l.disk)
	future.disk = overlay
	future.FS = l.FS.On(overlay)
	w := &writer{l: &future}
	if err := w.journal(p.CommitAt, p.block); err != nil {
		return err
	}
	if err := w.flush(); err != nil {
		return err
	}
	scan, err := future.scan(p.Start)
	if err != nil {
		return err
	}
	return p.compare(scan, written, t)
}

// compare checks that a recovery finds the transaction and nothing else. The content of the
// blocks was checked before; compare checks that they are found.
func (p *Pending) compare(scan *Scan, written *encoded, t *Transaction) error {
	switch {
	case len(scan.Transactions) != 1 || scan.End != p.End || scan.Next != p.Sequence+1 || scan.Partial:
		return fmt.Errorf("a recovery would end at block %d with sequence %d", scan.End, scan.Next)
	case scan.Fast.Tags > 0 || scan.Fast.Err != nil:
		return fmt.Errorf("a recovery would find fast commits after it: %d, %v", scan.Fast.Tags, scan.Fast.Err)
	case len(scan.Transactions[0].Blocks) != len(t.Blocks) || !slices.Equal(scan.Transactions[0].Revokes, t.Revokes):
		return fmt.Errorf("a recovery would find %d blocks and %d revoke records", len(scan.Transactions[0].Blocks), len(scan.Transactions[0].Revokes))
	}
	for i, b := range scan.Transactions[0].Blocks {
		at := p.log.Super.distance(p.Block, b.At)
		if b.Home != t.Blocks[i].Home || int(at) != written.data[i] || b.Escaped != parseHeader(t.Blocks[i].Data).valid {
			return fmt.Errorf("a recovery would write another block to block %d", b.Home)
		}
	}
	return nil
}

// ErrUncertain says that a disk failed while a transaction was being committed, so that
// it is not known whether a recovery will find it.
var ErrUncertain = errors.New("the disk failed during the commit: whether the transaction is in the log is not known")

// Commit writes the commit block and makes it durable: from then on a recovery
// replays the transaction. The first transaction in the log is replayed only once the
// file system says that its journal is in use, and the journal's superblock says
// where the log begins.
//
// If the disk fails, Commit tries once more. If that fails too, it takes the transaction back, so
// that a recovery does not find it. If even that fails, the error wraps ErrUncertain.
func (p *Pending) Commit() error {
	if p.done {
		return fmt.Errorf("commit transaction %d: it was tried before", p.Sequence)
	}
	p.done = true
	err := p.commit()
	if err != nil {
		// After a failed fsync the host's cache has clean pages that the disk does not
		// have (fsync(2), EIO): only what is written again is synced again.
		err = p.commit()
	}
	if err != nil {
		w := &writer{l: p.log}
		back := w.journal(p.Block, make([]byte, len(p.block)))
		if back == nil {
			back = w.sync()
		}
		if back != nil {
			err = fmt.Errorf("%w: %w", ErrUncertain, err)
		}
		return fmt.Errorf("commit transaction %d: %w", p.Sequence, err)
	}
	return nil
}

// Recommit makes the last transaction in the log durable, and the log's beginning, if a scan
// found a transaction: what it read may be in the host's cache only, if an earlier attempt to
// commit ended in a failed fsync. If Recommit fails, the error wraps ErrUncertain.
func (l *Log) Recommit(scan *Scan) error {
	if len(scan.Transactions) == 0 {
		return nil
	}
	p := &Pending{Start: Start{l.Super.Start, l.Super.Sequence}, log: l, first: true}
	p.CommitAt = l.Super.advance(scan.End, l.Super.room()-1) // the log is a ring
	var err error
	if p.block, err = (&reader{l: l}).block(p.CommitAt); err == nil {
		err = p.commit()
	}
	if err != nil {
		return fmt.Errorf("commit transaction %d again: %w: %w", scan.Next-1, ErrUncertain, err)
	}
	return nil
}

func (p *Pending) commit() error {
	w := &writer{l: p.log}
	if err := w.journal(p.CommitAt, p.block); err != nil {
		return err
	}
	if p.first {
		// The file system says that it needs its journal before the journal says where it
		// begins: with an empty journal that has no effect, whereas the next mount discards
		// a log that the file system does not need.
		if err := w.inUse(true); err != nil {
			return err
		}
	}
	if err := w.sync(); err != nil || !p.first {
		return err
	}
	super := p.log.Super
	super.Start, super.Sequence = p.Block, p.Sequence
	if err := w.super(&super); err != nil {
		return err
	}
	if err := w.sync(); err != nil {
		return err
	}
	return p.log.reload(super)
}
