package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// The tail of a block of the orphan file: a magic number, and a checksum of what precedes
// the tail (fs/ext4/ext4.h, struct ext4_orphan_block_tail).
const (
	orphanTail  = 8
	orphanMagic = 0x0b10ca04
)

// ErrOrphanBlock says that a block is not one of the orphan file.
var ErrOrphanBlock = errors.New("block of the orphan file has no magic number")

// OrphanBlock returns the inode numbers in a block of the orphan file, 4 bytes each; 0
// means an empty slot. It verifies the checksum, if there is one. The result is a part of
// b, not a copy.
func (s *Super) OrphanBlock(file *Inode, at addr.Block, b []byte) ([]byte, error) {
	n := len(b) - orphanTail
	if n < 0 || binary.LittleEndian.Uint32(b[n:]) != orphanMagic {
		return nil, ErrOrphanBlock
	}
	if s.Checksummed() {
		if has, carried := orphanChecksum(file, at, b[:n]), binary.LittleEndian.Uint32(b[n+4:]); has != carried {
			return nil, fmt.Errorf("%w: %#x instead of %#x", ErrChecksum, carried, has)
		}
	}
	return b[:n], nil
}

// SealOrphanBlock computes the checksum of a block of the orphan file and stores it there,
// if these blocks have checksums.
func (s *Super) SealOrphanBlock(file *Inode, at addr.Block, b []byte) error {
	n := len(b) - orphanTail
	if n < 0 || binary.LittleEndian.Uint32(b[n:]) != orphanMagic {
		return ErrOrphanBlock
	}
	if s.Checksummed() {
		binary.LittleEndian.PutUint32(b[n+4:], orphanChecksum(file, at, b[:n]))
	}
	return nil
}

// orphanChecksum computes what ext4_orphan_file_block_csum does (fs/ext4/orphan.c).
func orphanChecksum(file *Inode, at addr.Block, entries []byte) uint32 {
	return CRC32C(CRC32C(file.Seed, binary.LittleEndian.AppendUint64(nil, uint64(at))), entries)
}
