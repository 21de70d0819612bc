package jbd2

import (
	"fmt"
	"iter"
	"slices"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// Scan is what a recovery finds in a log.
type Scan struct {
	// Empty says that the superblock has no start: there is nothing to recover.
	// Transactions is then empty, Next is s_sequence, and Start and End are Head,
	// or First if there is no Head. A mount numbers its first transaction
	// s_sequence + 1; a kernel that emptied the log while mounted, s_sequence.
	Empty        bool
	Transactions []Logged
	Next         TID // number of the next transaction
	Start, End   Pos // of the valid log
	// Partial says that at End there is a block of the transaction numbered Next,
	// whose commit block is not there.
	Partial bool
	// Fast is what the area of fast commits holds on top of the transactions.
	Fast FastCommits

	freed revocations // what ForgetFreed and Forget found
}

// Logged is a transaction in the log.
type Logged struct {
	Sequence   TID
	Start, End Pos // its first block, and the block after its commit block
	Time       time.Time
	Blocks     []LoggedBlock // in the order of the log
	Revokes    []addr.Block
	Mark       Mark // zero, unless the transaction is ours
	// Mended says that the commit block has the right checksum only with zeros
	// after its header, as left by a disk that writes 512 bytes at a time. Linux
	// 6.12 accepts it (jbd2_commit_block_csum_verify_partial), 6.1 fails.
	Mended bool
}

// LoggedBlock is a block of the file system in the log.
type LoggedBlock struct {
	Home    addr.Block // where it belongs
	At      Pos        // where it is
	Escaped bool       // it begins with the journal's magic, which is zero in the log
	// Damaged says that its checksum is wrong, and that a kernel fails to replay it. Linux was seen to leave such
	// logs with data=journal (5.10, 7.2). What else there is decides whether it matters: see Whole.
	Damaged bool

	checksum uint32
}

// CorruptError says that a log is damaged where a recovery would notice that, and
// fail: it is not for us to guess what was meant.
type CorruptError struct {
	Sequence TID // the transaction
	At       Pos // the block of the journal
	Reason   string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("transaction %d is damaged at block %d of the journal: %s", e.Sequence, e.At, e.Reason)
}

// Scan reads the log as a recovery does (fs/jbd2/recovery.c, do_one_pass), and
// verifies everything that a recovery would replay. Where a recovery fails the error is a *CorruptError,
// unless all that it fails for was not committed yet (dropTorn), or is blocks whose checksum is wrong: see Whole.
func (l *Log) Scan() (*Scan, error) {
	s := &l.Super
	if s.Empty() {
		at := s.Head
		if at < s.First || at >= s.Last {
			at = s.First
		}
		return &Scan{Empty: true, Next: s.Sequence, Start: at, End: at}, nil
	}
	scan, err := l.scan(Start{s.Start, s.Sequence})
	if err != nil {
		return nil, fmt.Errorf("scan log: %w", err)
	}
	return scan, nil
}

// Whole says which block a replay could not write, with a *CorruptError: the last version of it in the log has a wrong
// checksum. A replay does without a version that is superseded, revoked, or to be left out (ForgetFreed, Forget).
func (s *Scan) Whole() error {
	for b := range s.damaged() {
		return &CorruptError{Sequence: b.Sequence, At: b.At, Reason: fmt.Sprintf("wrong checksum of block %d", b.Home)}
	}
	return nil
}

// Damaged returns the blocks for which Whole fails.
func (s *Scan) Damaged() (homes []addr.Block) {
	for b := range s.damaged() {
		homes = append(homes, b.Home)
	}
	return homes
}

func (s *Scan) damaged() iter.Seq[Newest] {
	return func(yield func(Newest) bool) {
		for _, b := range s.Newest() {
			if b.Damaged && !yield(b) {
				return
			}
		}
	}
}

// scanner is a scan under way.
type scanner struct {
	*Log
	in       *reader
	out      *Scan
	at       Pos    // the block to read next
	walked   uint32 // blocks passed
	txn      Logged // the transaction that is being read
	broken   error  // why revoke records of txn cannot be read
	stale    bool   // a descriptor or revoke block of txn has a wrong checksum
	sum      uint32 // of V1, over the blocks of txn
	previous uint64 // when the transaction before was committed, in seconds
	failed   *Logged
	blocks   int // so far
	revokes  int // likewise
}

// maxRecords bounds the blocks in a log, and its revoke records: the memory that
// they take must not depend on what a disk says.
const maxRecords = 1 << 22

// scan reads the log from a transaction on.
func (l *Log) scan(from Start) (*Scan, error) {
	s := &scanner{Log: l, in: &reader{l: l}, at: from.Block, sum: ^uint32(0)}
	s.out = &Scan{Next: from.Sequence, Start: from.Block, End: from.Block, freed: l.freed}
	for more := true; more; {
		b, err := s.in.block(s.at)
		if err != nil {
			return nil, err
		}
		h := parseHeader(b)
		s.txn.Sequence = s.out.Next
		if !h.valid || h.sequence != s.out.Next {
			break
		}
		if more, err = s.block(h.kind, b); err != nil {
			return nil, err
		}
	}
	if s.failed != nil {
		// The last commit block is there without the blocks of its transaction, and
		// counts as not being there (JBD2_FEATURE_INCOMPAT_ASYNC_COMMIT).
		s.out.Next, s.out.End = s.failed.Sequence, s.failed.Start
	}
	end, err := s.in.block(s.out.End)
	if err != nil {
		return nil, err
	}
	h := parseHeader(end)
	s.out.Partial = h.valid && h.sequence == s.out.Next
	if err := l.verify(s.out); err != nil {
		return nil, err
	}
	s.out.Fast, err = l.fastCommits(s.out.Next)
	return s.out, err
}

func (s *scanner) corrupt(format string, args ...any) error {
	return &CorruptError{Sequence: s.out.Next, At: s.at, Reason: fmt.Sprintf(format, args...)}
}

// advance moves past a block. A transaction that is longer than the log would make
// a recovery loop for ever.
func (s *scanner) advance() error {
	s.walked++
	if s.walked > s.Super.room() {
		return s.corrupt("it is longer than the log")
	}
	s.at = s.Super.advance(s.at, 1)
	return nil
}

// block handles a block of the log itself, of the expected transaction. more
// is false if the log ends before it.
func (s *scanner) block(kind uint32, b []byte) (more bool, err error) {
	switch kind {
	case descriptorBlock:
		return true, s.descriptor(b)
	case revokeBlock:
		s.stale = s.stale || !s.Super.tailValid(b)
		revokes, err := s.Super.revokes(b)
		if err != nil && s.broken == nil {
			s.broken = s.corrupt("%v", err)
		}
		if s.revokes += len(revokes); s.revokes > maxRecords {
			return false, s.corrupt("more than %d revoke records", maxRecords)
		}
		s.txn.Revokes = append(s.txn.Revokes, revokes...)
		return true, s.advance()
	case commitBlock:
		return s.commit(b)
	}
	return false, nil
}

// descriptor handles a descriptor block and the blocks that it describes.
func (s *scanner) descriptor(b []byte) error {
	s.stale = s.stale || !s.Super.tailValid(b)
	if err := s.advance(); err != nil {
		return err
	}
	if s.Super.Checksum == ChecksumV1 {
		s.sum = crc32be(s.sum, b)
	}
	for _, t := range s.Super.tags(b) {
		if s.blocks++; s.blocks > maxRecords {
			return s.corrupt("more than %d blocks", maxRecords)
		}
		s.txn.Blocks = append(s.txn.Blocks, LoggedBlock{
			Home: t.home, At: s.at, Escaped: t.flags&flagEscape != 0, checksum: t.checksum,
		})
		if s.Super.Checksum == ChecksumV1 {
			data, err := s.in.block(s.at)
			if err != nil {
				return err
			}
			s.sum = crc32be(s.sum, data)
		}
		if err := s.advance(); err != nil {
			return err
		}
	}
	return nil
}

// commit handles a commit block. If any checksum is wrong, the commit time distinguishes
// what remains from earlier in the log's life from what is damaged.
func (s *scanner) commit(b []byte) (more bool, err error) {
	c := parseCommit(b)
	valid := s.Super.commitValid(b, s.sum)
	if !valid && s.Super.tailed() && s.Super.commitValid(commitMended(b), 0) {
		valid, s.txn.Mended = true, true
	}
	switch {
	case s.stale && c.seconds < s.previous:
		return false, nil
	case s.stale:
		return false, s.corrupt("wrong checksum of a descriptor or revoke block")
	case s.failed != nil:
		return false, s.corrupt("the transaction before it is not whole")
	case !valid && c.seconds < s.previous:
		return false, nil
	case !valid && !s.Super.Async:
		return false, s.corrupt("wrong checksum of the commit block")
	case s.broken != nil && valid:
		return false, s.broken
	}
	if err := s.advance(); err != nil {
		return false, err
	}
	if !valid {
		s.failed = &Logged{Sequence: s.out.Next, Start: s.out.End}
	} else {
		s.txn.Start, s.txn.End, s.txn.Time = s.out.End, s.at, c.time()
		s.txn.Mark = Mark(b[markAt:])
		s.out.Transactions = append(s.out.Transactions, s.txn)
	}
	s.previous, s.sum = c.seconds, ^uint32(0)
	s.txn, s.broken = Logged{}, nil
	s.out.Next++
	s.out.End = s.at
	return true, nil
}

// verify checks that the homes of the blocks that a replay writes are in the file system but not in its journal. It marks
// blocks that are not whole.
func (l *Log) verify(scan *Scan) error {
	if l.Super.tailed() {
		if err := l.markDamaged(scan); err != nil {
			return err
		}
		if l.Super.Async {
			scan.dropTorn()
		}
	}
	limit, err := l.limit(scan)
	if err != nil {
		return err
	}
	for _, b := range scan.Newest() {
		corrupt := func(format string, args ...any) error {
			return &CorruptError{Sequence: b.Sequence, At: b.At, Reason: fmt.Sprintf(format, args...)}
		}
		switch {
		case uint64(b.Home) < uint64(l.FS.Super.FirstDataBlock) || uint64(b.Home) >= limit:
			return corrupt("block %d, of a file system of %d", b.Home, limit)
		case l.Contains(b.Home):
			return corrupt("block %d, which is in the journal", b.Home)
		}
	}
	return nil
}

// markDamaged marks the blocks that make a recovery fail.
func (l *Log) markDamaged(scan *Scan) error {
	revoked, in := scan.revoked(), &reader{l: l}
	for _, t := range scan.Transactions {
		for i, b := range t.Blocks {
			if revoked.since(b.Home, t.Sequence) {
				continue
			}
			data, err := in.block(b.At)
			if err != nil {
				return err
			}
			t.Blocks[i].Damaged = l.Super.blockChecksum(t.Sequence, data) != b.checksum
		}
	}
	return nil
}

// dropTorn treats the last transaction as one without its commit block, if one of its blocks is not whole: with
// JBD2_FEATURE_INCOMPAT_ASYNC_COMMIT the commit block does not wait for the others, and nobody was told that the
// transaction is committed before all of them were there. A kernel fails because of it.
func (s *Scan) dropTorn() {
	last := len(s.Transactions) - 1
	if last < 0 || !slices.ContainsFunc(s.Transactions[last].Blocks, func(b LoggedBlock) bool { return b.Damaged }) {
		return
	}
	s.Next, s.End, s.Partial = s.Transactions[last].Sequence, s.Transactions[last].Start, true
	s.Transactions = s.Transactions[:last]
}

// limit returns the size of the file system in blocks, which may have grown in the
// log.
func (l *Log) limit(scan *Scan) (uint64, error) {
	limit := max(l.FS.Super.Blocks, l.grown)
	home, _ := l.FS.Super.Location()
	for _, t := range scan.Transactions {
		for _, b := range t.Blocks {
			if b.Home != home {
				continue
			}
			data, err := l.Read(b)
			if err != nil {
				return 0, err
			}
			if limit, err = l.grow(limit, data); err != nil {
				return 0, &CorruptError{Sequence: t.Sequence, At: b.At, Reason: err.Error()}
			}
		}
	}
	return limit, nil
}

// grow returns the size of the file system in blocks with another version of its superblock's block, if that is larger: a
// kernel makes a mounted file system larger (resize2fs(8)), and not smaller. The disk must have room for the blocks.
func (l *Log) grow(limit uint64, data []byte) (uint64, error) {
	_, offset := l.FS.Super.Location()
	super, err := ext4.ParseSuper(data[offset:])
	if err == nil {
		err = super.Check()
	}
	if err == nil && super.BlockSize != l.Super.BlockSize {
		err = fmt.Errorf("the logged superblock has blocks of %d bytes", super.BlockSize)
	}
	if err != nil || super.Blocks <= limit {
		return limit, err
	}
	if err := ext4.CheckSuper(data[offset:][:ext4.SuperSize]); err != nil {
		return limit, err
	}
	return super.Blocks, l.FS.Fits(super.Blocks)
}

// Limit returns the size of the file system in blocks, with what a scan found in the log, and with super, a later version
// of its superblock's block; super is nil if there is none.
func (l *Log) Limit(scan *Scan, super []byte) (uint64, error) {
	limit, err := l.limit(scan)
	if err == nil && super != nil {
		limit, err = l.grow(limit, super)
	}
	if err != nil {
		return 0, fmt.Errorf("size of the file system: %w", err)
	}
	return limit, nil
}
