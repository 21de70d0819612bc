package ext4

import (
	"encoding/binary"
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

const (
	goodOldInodeSize = 128 // EXT4_GOOD_OLD_INODE_SIZE
	inodeBlockSize   = 60  // of i_block, in bytes
)

// Inode is an inode (fs/ext4/ext4.h, struct ext4_inode).
type Inode struct {
	Number     addr.Ino
	Mode       uint16 // type and permissions, as in stat(2)
	Links      uint16
	Size       uint64 // in bytes
	Flags      InodeFlags
	Generation uint32
	Deleted    uint32 // i_dtime: seconds since 1970, or the next orphan
	Block      [inodeBlockSize]byte
	Sectors    uint64     // i_blocks: 512 bytes each; with InodeHugeFile, blocks
	Attributes addr.Block // i_file_acl: block of extended attributes; 0 if there is none
	Seed       uint32     // initial value of the checksums of its blocks
}

// InodeFlags is i_flags.
type InodeFlags uint32

// Some bits of InodeFlags (EXT4_*_FL).
const (
	InodeEncrypted  InodeFlags = 0x800
	InodeIndex      InodeFlags = 0x1000 // a directory with a hash index
	InodeHugeFile   InodeFlags = 0x40000
	InodeExtents    InodeFlags = 0x80000
	InodeVerity     InodeFlags = 0x100000
	InodeEAInode    InodeFlags = 0x200000 // it holds the value of an extended attribute
	InodeInlineData InodeFlags = 0x10000000
	InodeCasefold   InodeFlags = 0x40000000
)

// IsRegular reports whether it is a regular file.
func (i *Inode) IsRegular() bool { return i.Mode&0xf000 == 0x8000 }

// IsDir reports whether it is a directory.
func (i *Inode) IsDir() bool { return i.Mode&0xf000 == 0x4000 }

// IsSymlink reports whether it is a symbolic link.
func (i *Inode) IsSymlink() bool { return i.Mode&0xf000 == 0xa000 }

// InodeLocation returns the group of an inode, the block of the group's inode table
// that it lies in, counted from the table's start, and its offset there.
func (s *Super) InodeLocation(n addr.Ino) (group uint32, block uint64, offset int, err error) {
	if n == 0 || n > addr.Ino(s.Inodes) {
		return 0, 0, 0, fmt.Errorf("inode %d does not exist: there are only %d", n, s.Inodes)
	}
	group = uint32((n - 1) / addr.Ino(s.InodesPerGroup))
	at := uint64((n-1)%addr.Ino(s.InodesPerGroup)) * uint64(s.InodeSize)
	return group, at / uint64(s.BlockSize), int(at % uint64(s.BlockSize)), nil
}

// Inode reads an inode.
func (f *FS) Inode(n addr.Ino) (*Inode, error) {
	group, block, offset, err := f.Super.InodeLocation(n)
	if err != nil {
		return nil, fmt.Errorf("read %w", err)
	}
	g, err := f.Group(group)
	if err != nil {
		return nil, fmt.Errorf("read inode %d: %w", n, err)
	}
	b, err := f.Block(g.InodeTable + addr.Block(block))
	if err != nil {
		return nil, fmt.Errorf("read inode %d: %w", n, err)
	}
	return f.Super.ParseInode(n, b[offset:offset+int(f.Super.InodeSize)])
}

// ParseInode reads the bytes of an inode and verifies their checksum, if they
// have one.
func (s *Super) ParseInode(n addr.Ino, b []byte) (*Inode, error) {
	i := &Inode{}
	if err := s.ReadInode(i, n, b); err != nil {
		return nil, err
	}
	return i, nil
}

// ReadInode is ParseInode into an existing Inode, whose content must not be used after an error.
func (s *Super) ReadInode(i *Inode, n addr.Ino, b []byte) error {
	if len(b) != int(s.InodeSize) {
		return fmt.Errorf("parse inode %d: %d bytes instead of %d", n, len(b), s.InodeSize)
	}
	u16 := func(off int) uint16 { return binary.LittleEndian.Uint16(b[off:]) }
	u32 := func(off int) uint32 { return binary.LittleEndian.Uint32(b[off:]) }
	*i = Inode{
		Number: n, Mode: u16(0x00), Links: u16(0x1a), Size: uint64(u32(0x04)) | uint64(u32(0x6c))<<32,
		Flags: InodeFlags(u32(0x20)), Generation: u32(0x64), Deleted: u32(0x14), Block: [inodeBlockSize]byte(b[0x28:]),
		Sectors:    uint64(u32(0x1c)) | uint64(u16(0x74))<<32,
		Attributes: addr.Block(u32(0x68)) | addr.Block(u16(0x76))<<32,
	}
	if !s.Checksummed() {
		return nil
	}
	i.Seed = s.inodeSeed(n, i.Generation)
	if !s.Linux {
		return nil
	}
	if want, got := inodeChecksum(i.Seed, b); want != got {
		return fmt.Errorf("parse inode %d: %w: %#x instead of %#x", n, ErrChecksum, got, want)
	}
	return nil
}

// SealInode computes the checksum of a raw inode and stores it there, if inodes have
// checksums.
func (s *Super) SealInode(n addr.Ino, b []byte) {
	if !s.Checksummed() || !s.Linux {
		return
	}
	_, has := inodeChecksum(s.inodeSeed(n, binary.LittleEndian.Uint32(b[0x64:])), b)
	binary.LittleEndian.PutUint16(b[0x7c:], uint16(has))
	if len(b) > goodOldInodeSize && binary.LittleEndian.Uint16(b[0x80:]) >= 4 {
		binary.LittleEndian.PutUint16(b[0x82:], uint16(has>>16))
	}
}

// inodeSeed returns the initial value of the checksums of an inode and of its blocks.
func (s *Super) inodeSeed(n addr.Ino, generation uint32) uint32 {
	return crc32cNumber(crc32cNumber(s.ChecksumSeed, uint32(n)), generation)
}

// inodeChecksum returns the checksum stored in a raw inode and the one computed
// from its bytes (fs/ext4/inode.c, ext4_inode_csum). If the inode has no room for
// the upper half, both are the lower half only.
func inodeChecksum(seed uint32, b []byte) (carried, has uint32) {
	carried = uint32(binary.LittleEndian.Uint16(b[0x7c:]))
	has = CRC32C(crc32cZeros(CRC32C(seed, b[:0x7c]), 2), b[0x7e:goodOldInodeSize])
	if len(b) == goodOldInodeSize {
		return carried, has & 0xffff
	}
	has = CRC32C(has, b[0x80:0x82])
	// i_extra_isize counts from the end of the old inode; i_checksum_hi lies at 0x82.
	if extra := binary.LittleEndian.Uint16(b[0x80:]); extra < 4 {
		return carried, CRC32C(has, b[0x82:]) & 0xffff
	}
	carried |= uint32(binary.LittleEndian.Uint16(b[0x82:])) << 16
	return carried, CRC32C(crc32cZeros(has, 2), b[0x84:])
}
