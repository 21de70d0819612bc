package jbd2

import (
	"encoding/binary"
	"fmt"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// magic begins every block of the log itself (include/linux/jbd2.h,
// JBD2_MAGIC_NUMBER). Like all numbers there, it is big-endian.
const magic = 0xc03b3998

// Kinds of blocks (include/linux/jbd2.h).
const (
	descriptorBlock = 1
	commitBlock     = 2
	superV1         = 3
	superV2         = 4
	revokeBlock     = 5
)

const (
	headerSize       = 12
	revokeHeaderSize = 16
	tailSize         = 4  // the checksum at the end of descriptor and revoke blocks
	uuidSize         = 16 // after a tag without flagSameUUID
)

// Flags of a tag (include/linux/jbd2.h, JBD2_FLAG_*).
const (
	flagEscape   = 1 // the block began with magic, and has zeros there in the log
	flagSameUUID = 2
	flagLast     = 8
)

// header is what every block of the log itself begins with (journal_header_t).
type header struct {
	valid    bool // it has the magic
	kind     uint32
	sequence TID
}

func parseHeader(b []byte) header {
	u32 := func(off int) uint32 { return binary.BigEndian.Uint32(b[off:]) }
	return header{valid: u32(0) == magic, kind: u32(4), sequence: TID(u32(8))}
}

func putHeader(b []byte, kind uint32, sequence TID) {
	binary.BigEndian.PutUint32(b, magic)
	binary.BigEndian.PutUint32(b[4:], kind)
	binary.BigEndian.PutUint32(b[8:], uint32(sequence))
}

// tag describes a block in the log (journal_block_tag_t, journal_block_tag3_t).
type tag struct {
	home     addr.Block
	flags    uint16
	checksum uint32 // for V2 its lower half only
}

// tags reads the tags of a descriptor block. They end with the tag that has flagLast,
// or where there is no room for another (fs/jbd2/recovery.c, count_tags).
func (s *Super) tags(b []byte) []tag {
	end := len(b)
	if s.tailed() {
		end -= tailSize
	}
	size := s.TagSize()
	var tags []tag
	for at := headerSize; at+size <= end; at += size {
		t := tag{
			home:  addr.Block(binary.BigEndian.Uint32(b[at:])),
			flags: binary.BigEndian.Uint16(b[at+6:]),
		}
		if s.Is64Bit {
			t.home |= addr.Block(binary.BigEndian.Uint32(b[at+8:])) << 32
		}
		switch s.Checksum {
		case ChecksumV3:
			t.checksum = binary.BigEndian.Uint32(b[at+12:])
		case ChecksumV2:
			t.checksum = uint32(binary.BigEndian.Uint16(b[at+4:]))
		}
		tags = append(tags, t)
		if t.flags&flagSameUUID == 0 {
			at += uuidSize
		}
		if t.flags&flagLast != 0 {
			break
		}
	}
	return tags
}

// putTag writes a tag.
func (s *Super) putTag(b []byte, t tag) {
	binary.BigEndian.PutUint32(b, uint32(t.home))
	binary.BigEndian.PutUint16(b[6:], t.flags)
	if s.Is64Bit {
		binary.BigEndian.PutUint32(b[8:], uint32(t.home>>32))
	}
	switch s.Checksum {
	case ChecksumV3:
		binary.BigEndian.PutUint32(b[12:], t.checksum)
	case ChecksumV2:
		binary.BigEndian.PutUint16(b[4:], uint16(t.checksum))
	}
}

// blockChecksum computes the checksum that a block's tag has, over the block as it is in
// the log (fs/jbd2/commit.c, jbd2_block_tag_csum_set).
func (s *Super) blockChecksum(sequence TID, b []byte) uint32 {
	sum := ext4.CRC32C(ext4.CRC32C(s.seed, binary.BigEndian.AppendUint32(nil, uint32(sequence))), b)
	switch s.Checksum {
	case ChecksumV3:
		return sum
	case ChecksumV2:
		return sum & 0xffff
	}
	return 0
}

// tailChecksum computes the checksum at the end of a descriptor or revoke block
// (fs/jbd2/journal.c, jbd2_descriptor_block_csum_set).
func (s *Super) tailChecksum(b []byte) uint32 {
	return ext4.CRC32C(ext4.CRC32C(s.seed, b[:len(b)-tailSize]), make([]byte, tailSize))
}

// tailValid reports whether a descriptor or revoke block has the checksum that
// it should end with.
func (s *Super) tailValid(b []byte) bool {
	return !s.tailed() || binary.BigEndian.Uint32(b[len(b)-tailSize:]) == s.tailChecksum(b)
}

func (s *Super) putTail(b []byte) {
	if s.tailed() {
		binary.BigEndian.PutUint32(b[len(b)-tailSize:], s.tailChecksum(b))
	}
}

// revokeSize is the size of a revoke record, in bytes.
func (s *Super) revokeSize() int {
	if s.Is64Bit {
		return 8
	}
	return 4
}

// revokes reads the records of a revoke block (fs/jbd2/recovery.c,
// scan_revoke_records).
func (s *Super) revokes(b []byte) ([]addr.Block, error) {
	end := len(b)
	if s.tailed() {
		end -= tailSize
	}
	used := binary.BigEndian.Uint32(b[headerSize:])
	if uint64(used) > uint64(end) {
		return nil, fmt.Errorf("%d bytes of revoke records in a block of %d", used, len(b))
	}
	var blocks []addr.Block
	for at := revokeHeaderSize; at+s.revokeSize() <= int(used); at += s.revokeSize() {
		if s.Is64Bit {
			blocks = append(blocks, addr.Block(binary.BigEndian.Uint64(b[at:])))
		} else {
			blocks = append(blocks, addr.Block(binary.BigEndian.Uint32(b[at:])))
		}
	}
	return blocks, nil
}

// commit is a commit block (struct commit_header).
type commit struct {
	sumType, sumSize byte
	checksum         uint32
	seconds          uint64
	nanoseconds      uint32
}

func parseCommit(b []byte) commit {
	return commit{
		sumType: b[12], sumSize: b[13], checksum: binary.BigEndian.Uint32(b[16:]),
		seconds: binary.BigEndian.Uint64(b[48:]), nanoseconds: binary.BigEndian.Uint32(b[56:]),
	}
}

func (c commit) time() time.Time { return time.Unix(int64(c.seconds), int64(c.nanoseconds%1e9)) }

// commitChecksum computes h_chksum[0] of a commit block for V2 and V3
// (fs/jbd2/commit.c, jbd2_commit_block_csum_set).
func (s *Super) commitChecksum(b []byte) uint32 {
	sum := ext4.CRC32C(ext4.CRC32C(s.seed, b[:16]), make([]byte, 4))
	return ext4.CRC32C(sum, b[20:])
}

// commitValid reports whether a commit block has the right checksum. For V1
// that is sum, or none at all (fs/jbd2/recovery.c, do_one_pass).
func (s *Super) commitValid(b []byte, sum uint32) bool {
	c := parseCommit(b)
	switch s.Checksum {
	case ChecksumV1:
		return c == commit{1, 4, sum, c.seconds, c.nanoseconds} || c == commit{0, 0, 0, c.seconds, c.nanoseconds}
	case ChecksumV2, ChecksumV3:
		return c.checksum == s.commitChecksum(b)
	}
	return true
}

// commitHeaderSize is the size of struct commit_header, in bytes, with padding to
// a multiple of 8. The rest of the block is zero.
const commitHeaderSize = 64

// commitMended returns a commit block with zeros after its header.
func commitMended(b []byte) []byte {
	out := make([]byte, len(b))
	copy(out, b[:commitHeaderSize])
	return out
}

// markAt is the offset of the mark in a commit block, in bytes.
const markAt = 20

// putCommit fills in a commit block; sum is the checksum of V1.
func (s *Super) putCommit(b []byte, sequence TID, sum uint32, at time.Time, mark Mark) {
	clear(b)
	putHeader(b, commitBlock, sequence)
	copy(b[markAt:], mark[:])
	binary.BigEndian.PutUint64(b[48:], uint64(at.Unix()))
	binary.BigEndian.PutUint32(b[56:], uint32(at.Nanosecond()))
	switch s.Checksum {
	case ChecksumV1:
		b[12], b[13] = 1, 4 // JBD2_CRC32_CHKSUM, JBD2_CRC32_CHKSUM_SIZE
		binary.BigEndian.PutUint32(b[16:], sum)
	case ChecksumV2, ChecksumV3:
		binary.BigEndian.PutUint32(b[16:], s.commitChecksum(b))
	}
}

// crc32be continues the checksum of V1 over b: polynomial 0x04c11db7, most
// significant bit first (lib/crc32.c, crc32_be). The initial value is all ones.
func crc32be(sum uint32, b []byte) uint32 {
	for _, c := range b {
		sum = sum<<8 ^ crc32beTable[byte(sum>>24)^c]
	}
	return sum
}

var crc32beTable = func() (table [256]uint32) {
	for i := range table {
		v := uint32(i) << 24
		for range 8 {
			v = v<<1 ^ 0x04c11db7*(v>>31)
		}
		table[i] = v
	}
	return table
}()

// Revokes reads the records of a revoke block of a transaction. It returns nil if the
// block is something else.
func (s *Super) Revokes(sequence TID, b []byte) ([]addr.Block, error) {
	if len(b) != int(s.BlockSize) {
		return nil, fmt.Errorf("%d bytes are not a block", len(b))
	}
	if h := parseHeader(b); !h.valid || h.kind != revokeBlock || h.sequence != sequence {
		return nil, nil
	}
	return s.revokes(b)
}
