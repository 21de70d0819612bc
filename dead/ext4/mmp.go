package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// MMP is the block by which a kernel sees that another one has the file system mounted
// (fs/ext4/ext4.h, struct mmp_struct): the one that has it mounted writes the block every few
// seconds, each time with the next sequence number (fs/ext4/mmp.c, kmmpd).
type MMP struct {
	Sequence uint32 // mmp_seq: a sequence number, MMPClean or MMPCheck
	Time     uint64 // mmp_time: when it was written, in seconds since 1970, by the writer's clock
	Node     string // mmp_nodename: of the writer
	Device   string // mmp_bdevname: the writer's name of the device
}

// The values of mmp_seq that are not sequence numbers (EXT4_MMP_SEQ_CLEAN, EXT4_MMP_SEQ_FSCK),
// and the largest sequence number (EXT4_MMP_SEQ_MAX).
const (
	MMPClean uint32 = 0xff4d4d50 // nobody has it mounted: a mount need not wait
	MMPCheck uint32 = 0xe24d4d50 // e2fsck(8) is working on it
	mmpMax   uint32 = 0xe24d4d4f
)

// The magic number of a struct mmp_struct, its size, and the offset of its checksum, in bytes.
const (
	mmpMagic    = 0x004d4d50
	mmpSize     = 1024
	mmpChecksum = 1020
)

// ErrNotMMP says that a block is not an MMP block, or that s_mmp_block lies outside of the file system.
var ErrNotMMP = errors.New("not an MMP block")

// ParseMMP parses an MMP block, from disk or from memory. In memory the checksum may be stale, so
// it is verified only if checked is set.
func (s *Super) ParseMMP(b []byte, checked bool) (MMP, error) {
	if len(b) < mmpSize || binary.LittleEndian.Uint32(b) != mmpMagic {
		return MMP{}, ErrNotMMP
	}
	if sum := CRC32C(s.ChecksumSeed, b[:mmpChecksum]); checked && s.Checksummed() && sum != binary.LittleEndian.Uint32(b[mmpChecksum:]) {
		return MMP{}, fmt.Errorf("MMP block: %w", ErrChecksum)
	}
	text := func(b []byte) string { b, _, _ = bytes.Cut(b, []byte{0}); return string(b) }
	return MMP{
		Sequence: binary.LittleEndian.Uint32(b[4:]), Time: binary.LittleEndian.Uint64(b[8:]),
		Node: text(b[16:80]), Device: text(b[80:112]),
	}, nil
}

// Wrote reports whether the kernel that had m in memory when it died was the last one to write
// the block on the disk. That block is then m itself or its predecessor, since the kernel
// counts the number up in memory before it writes the block.
func (m MMP) Wrote(disk MMP) bool {
	next := disk.Sequence + 1
	if next > mmpMax {
		next = 1
	}
	counts := disk.Sequence > 0 && disk.Sequence <= mmpMax
	same := disk.Sequence == m.Sequence && disk.Time == m.Time
	before := next == m.Sequence && disk.Time <= m.Time
	return counts && m.Node == disk.Node && m.Device == disk.Device && (same || before)
}

// SetMMPClean returns a copy of the MMP block b which says that nobody has the file system
// mounted, with its checksum. It does not change b.
func (s *Super) SetMMPClean(b []byte) ([]byte, error) {
	if _, err := s.ParseMMP(b, true); err != nil {
		return nil, err
	}
	out := bytes.Clone(b)
	binary.LittleEndian.PutUint32(out[4:], MMPClean)
	if s.Checksummed() {
		binary.LittleEndian.PutUint32(out[mmpChecksum:], CRC32C(s.ChecksumSeed, out[:mmpChecksum]))
	}
	return out, nil
}

// MMPLocation returns the MMP block; ok is false if the file system does not have the mmp
// feature. It fails if the block lies outside of the file system.
func (s *Super) MMPLocation() (at addr.Block, ok bool, err error) {
	if s.Incompat&IncompatMMP == 0 {
		return 0, false, nil
	}
	if !s.Contains(s.mmpBlock, 1) {
		return 0, false, fmt.Errorf("block %d: %w", s.mmpBlock, ErrNotMMP)
	}
	return s.mmpBlock, true, nil
}
