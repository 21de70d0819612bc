// Package jbd2 reads, replays and extends the log of an ext3 or ext4 file system
// on its disk, so that at every instant in between an ordinary crash recovery
// gives either the old state of the file system or the new one.
//
// # Caveats
//
// Nobody else may write to the disk meanwhile. Journals on their own device
// are refused. ext3 has no checksums: damage is not noticed there.
package jbd2

import (
	"encoding/binary"
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// TID is the number of a transaction, which wraps around.
type TID uint32

// before reports whether t is older than u (include/linux/jbd2.h, tid_gt).
func (t TID) before(u TID) bool { return int32(t-u) < 0 }

// Pos is a block of the journal, counted from the journal's beginning.
type Pos uint32

// Features of the journal (include/linux/jbd2.h, JBD2_FEATURE_*).
const (
	compatChecksum = 0x1

	incompatRevoke      = 0x1
	incompat64Bit       = 0x2
	incompatAsyncCommit = 0x4
	incompatCsumV2      = 0x8
	incompatCsumV3      = 0x10
	incompatFastCommit  = 0x20
	incompatKnown       = 0x3f
)

// Checksum is the kind of checksums that a log carries.
type Checksum int

// Kinds of checksums.
const (
	NoChecksum Checksum = iota // ext3, or ext4 without metadata_csum
	ChecksumV1                 // crc32 of a transaction in its commit block (journal_checksum)
	ChecksumV2                 // crc32c of each block, of which blocks of the file system have 16 bits only
	ChecksumV3                 // likewise, in full
)

func (c Checksum) String() string { return [...]string{"none", "v1", "v2", "v3"}[c] }

// Super is the superblock of a journal (include/linux/jbd2.h,
// journal_superblock_t).
type Super struct {
	BlockSize  uint32 // in bytes; the file system's too
	Length     Pos    // s_maxlen: blocks in the journal
	First      Pos    // of the log, which is the ring [First, Last)
	Last       Pos
	FastFirst  Pos // the area of fast commits is [FastFirst, FastLast); there may be none
	FastLast   Pos
	Sequence   TID   // s_sequence: of the first transaction in the log
	Start      Pos   // s_start: where that begins; 0 if the log is empty
	Head       Pos   // s_head: where an empty log continues, from 6.5 on; otherwise 0
	Errno      int32 // s_errno: why the journal was aborted; 0 if it was not
	UUID       addr.UUID
	Checksum   Checksum
	Is64Bit    bool // block numbers have 64 bits
	Async      bool // commit blocks do not wait for the blocks before them
	FastCommit bool

	seed uint32 // initial value of the checksums of V2 and V3
}

// Empty reports whether there is nothing to recover.
func (s *Super) Empty() bool { return s.Start == 0 }

// TagSize returns the size of a descriptor's tag, without a UUID, in bytes
// (fs/jbd2/journal.c, journal_tag_bytes).
func (s *Super) TagSize() int {
	size := 8
	switch s.Checksum {
	case ChecksumV3:
		return 16
	case ChecksumV2:
		size = 10
	}
	if s.Is64Bit {
		size += 4
	}
	return size
}

// tailed reports whether descriptor and revoke blocks end with a checksum.
func (s *Super) tailed() bool { return s.Checksum >= ChecksumV2 }

// room returns the number of blocks in the ring.
func (s *Super) room() uint32 { return uint32(s.Last - s.First) }

// advance returns the position n blocks on in the ring; n is at most room.
func (s *Super) advance(p Pos, n uint32) Pos {
	at := uint64(p) + uint64(n)
	if at >= uint64(s.Last) {
		at -= uint64(s.room())
	}
	return Pos(at)
}

// distance returns the number of blocks in the ring from one position up to another.
func (s *Super) distance(from, to Pos) uint32 {
	if to < from {
		return uint32(s.Last-from) + uint32(to-s.First)
	}
	return uint32(to - from)
}

// Sizes and limits, in blocks.
const (
	superSize       = 1024     // of the superblock, in bytes
	minLength       = 1024     // JBD2_MIN_JOURNAL_BLOCKS
	maxLength       = 10240000 // mke2fs(8), -J size=
	defaultFastSize = 256      // JBD2_DEFAULT_FAST_COMMIT_BLOCKS
)

// FeatureError says that a journal has features that are not known.
type FeatureError struct{ Incompat, ROCompat uint32 }

func (e *FeatureError) Error() string {
	return fmt.Sprintf("unknown features of the journal: incompatible %#x, incompatible for writing %#x", e.Incompat, e.ROCompat)
}

// parseSuper reads the superblock of a journal in a file of so many blocks, as
// fs/jbd2/journal.c does (journal_get_superblock, load_superblock).
func parseSuper(b []byte, blockSize uint32, blocks uint64) (Super, error) {
	var s Super
	if len(b) < superSize {
		return s, fmt.Errorf("%d bytes", len(b))
	}
	u32 := func(off int) uint32 { return binary.BigEndian.Uint32(b[off:]) }
	h := parseHeader(b)
	switch {
	case !h.valid || h.kind != superV1 && h.kind != superV2:
		return s, errors.New("no magic number of jbd2")
	case u32(0x0c) != blockSize:
		return s, fmt.Errorf("blocks of %d bytes in a file system with blocks of %d", u32(0x0c), blockSize)
	case uint64(u32(0x10)) > blocks:
		return s, fmt.Errorf("%d blocks in a file of %d", u32(0x10), blocks)
	case u32(0x10) > maxLength || u32(0x14) == 0 || uint64(u32(0x14))+minLength > uint64(u32(0x10))+1:
		return s, fmt.Errorf("log from block %d to %d", u32(0x14), u32(0x10))
	}
	s = Super{
		BlockSize: blockSize, Length: Pos(u32(0x10)), First: Pos(u32(0x14)), Last: Pos(u32(0x10)),
		Sequence: TID(u32(0x18)), Start: Pos(u32(0x1c)), Errno: int32(u32(0x20)),
	}
	if h.kind == superV2 {
		if err := s.parseV2(b); err != nil {
			return s, err
		}
	}
	if s.Start != 0 && (s.Start < s.First || s.Start >= s.Last) {
		return s, fmt.Errorf("the log [%d, %d) starts at block %d", s.First, s.Last, s.Start)
	}
	return s, nil
}

// parseV2 reads what superblocks of version 1 do not have.
func (s *Super) parseV2(b []byte) error {
	u32 := func(off int) uint32 { return binary.BigEndian.Uint32(b[off:]) }
	compat, incompat, roCompat := u32(0x24), u32(0x28), u32(0x2c)
	if incompat&^incompatKnown != 0 || roCompat != 0 {
		return &FeatureError{incompat &^ incompatKnown, roCompat}
	}
	s.UUID = addr.UUID(b[0x30:0x40])
	s.Head = Pos(u32(0x58))
	s.Is64Bit = incompat&incompat64Bit != 0
	s.Async = incompat&incompatAsyncCommit != 0
	s.FastCommit = incompat&incompatFastCommit != 0
	kinds := 0
	for kind, has := range []bool{
		ChecksumV1: compat&compatChecksum != 0, ChecksumV2: incompat&incompatCsumV2 != 0, ChecksumV3: incompat&incompatCsumV3 != 0,
	} {
		if has {
			s.Checksum = Checksum(kind)
			kinds++
		}
	}
	if kinds > 1 {
		return errors.New("more than one kind of checksums")
	}
	if s.tailed() {
		if b[0x50] != 4 { // JBD2_CRC32C_CHKSUM
			return fmt.Errorf("checksums of unknown type %d", b[0x50])
		}
		if want, got := u32(0xfc), superChecksum(b); want != got {
			return fmt.Errorf("%w: %#x instead of %#x", ext4.ErrChecksum, got, want)
		}
		s.seed = ext4.CRC32C(^uint32(0), s.UUID[:])
	}
	if !s.FastCommit {
		return nil
	}
	fast := u32(0x54)
	if fast == 0 {
		fast = defaultFastSize
	}
	if fast > uint32(s.Length) {
		return fmt.Errorf("%d blocks for fast commits in a journal of %d blocks", fast, s.Length)
	}
	if uint32(s.Length)-fast >= minLength {
		s.Last = s.Length - Pos(fast)
	}
	s.FastFirst, s.FastLast = s.Last+1, s.Length
	if s.First >= s.Last {
		return fmt.Errorf("log from block %d to %d", s.First, s.Last)
	}
	return nil
}

// superChecksum computes s_checksum (fs/jbd2/journal.c, jbd2_superblock_csum).
func superChecksum(b []byte) uint32 {
	sum := ext4.CRC32C(^uint32(0), b[:0xfc])
	sum = ext4.CRC32C(sum, make([]byte, 4))
	return ext4.CRC32C(sum, b[0x100:superSize])
}

// setSuper writes the changing fields of s to the bytes of its superblock, and
// the checksum if there is one.
func (s *Super) setSuper(b []byte) {
	put := func(off int, v uint32) { binary.BigEndian.PutUint32(b[off:], v) }
	put(0x18, uint32(s.Sequence))
	put(0x1c, uint32(s.Start))
	if parseHeader(b).kind != superV2 {
		return
	}
	put(0x58, uint32(s.Head))
	if !s.FastCommit {
		put(0x28, binary.BigEndian.Uint32(b[0x28:])&^incompatFastCommit)
	}
	if s.tailed() {
		put(0xfc, superChecksum(b))
	}
}
