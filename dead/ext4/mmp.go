package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// MMP is the block by which kernels see that another has the file system mounted
// (fs/ext4/ext4.h, struct mmp_struct): the one that has writes it every few seconds, with the
// next number (fs/ext4/mmp.c, kmmpd).
type MMP struct {
	Sequence uint32 // mmp_seq, or one of MMPClean and MMPCheck
	Time     uint64 // mmp_time: of that, in seconds since 1970, by the clock of who wrote it
	Node     string // mmp_nodename, of who wrote it
	Device   string // mmp_bdevname, as that calls it
}

// Numbers that are none (EXT4_MMP_SEQ_CLEAN, EXT4_MMP_SEQ_FSCK), and the largest that is one
// (EXT4_MMP_SEQ_MAX).
const (
	MMPClean uint32 = 0xff4d4d50 // nobody has it mounted: a mount need not wait
	MMPCheck uint32 = 0xe24d4d50 // e2fsck(8) has it
	mmpMax   uint32 = 0xe24d4d4f
)

// Of a struct mmp_struct: its magic, its size, and where its checksum is, in bytes.
const (
	mmpMagic    = 0x004d4d50
	mmpSize     = 1024
	mmpChecksum = 1020
)

// ErrNotMMP says that a block is not what the feature mmp has there.
var ErrNotMMP = errors.New("not an MMP block")

// ParseMMP reads the block, from disk or from memory. In memory its checksum may be of the time
// before: it is looked at only if checked says so.
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

// Wrote reports whether a kernel that had m in memory when it died is who wrote the block on
// the disk last: it is the same one, or that before it, since the number is counted up in
// memory first.
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

// SetMMPClean returns the block that says that nobody has the file system mounted, with its
// checksum; b stays as it is.
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

// MMPLocation is the block of the feature mmp, if the file system has that. It fails if the
// block lies outside of it.
func (s *Super) MMPLocation() (at addr.Block, ok bool, err error) {
	if s.Incompat&IncompatMMP == 0 {
		return 0, false, nil
	}
	if !s.Contains(s.mmpBlock, 1) {
		return 0, false, fmt.Errorf("block %d: %w", s.mmpBlock, ErrNotMMP)
	}
	return s.mmpBlock, true, nil
}
