package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// The end of a block of the file of orphans: a magic, and a checksum of what is before
// them (fs/ext4/ext4.h, struct ext4_orphan_block_tail).
const (
	orphanTail  = 8
	orphanMagic = 0x0b10ca04
)

// ErrOrphanBlock says that a block is not of the file of orphans.
var ErrOrphanBlock = errors.New("block of the orphan file has no magic number")

// OrphanBlock returns the numbers of inodes in a block of the file of orphans, 4 bytes
// each, 0 if there is none. The checksum is verified, if there is one. What is returned
// is a part of b.
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

// SealOrphanBlock puts the checksum of a block of the file of orphans into it, if those
// have one.
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

// orphanChecksum is that of ext4_orphan_file_block_csum (fs/ext4/orphan.c).
func orphanChecksum(file *Inode, at addr.Block, entries []byte) uint32 {
	return CRC32C(CRC32C(file.Seed, binary.LittleEndian.AppendUint64(nil, uint64(at))), entries)
}
