package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"understudy.dev/understudy/dead/addr"
)

// FS is a file system on a disk.
type FS struct {
	Super Super
	disk  io.ReaderAt
}

// Open reads the superblock of the file system that begins at offset 0 of disk.
// It fails with ErrNotExt, ErrChecksum, a *FeatureError, or because sizes are
// inconsistent.
func Open(disk io.ReaderAt) (*FS, error) {
	b, err := ReadSuper(disk)
	if err != nil {
		return nil, fmt.Errorf("open file system: %w", err)
	}
	s, err := ParseSuper(b)
	if err != nil {
		return nil, fmt.Errorf("open file system: %w", err)
	}
	if err := s.Check(); err != nil {
		return nil, fmt.Errorf("open file system: superblock: %w", err)
	}
	f := &FS{Super: s, disk: disk}
	if err := f.Fits(s.Blocks); err != nil {
		return nil, fmt.Errorf("open file system: %w", err)
	}
	return f, nil
}

// Fits checks that the disk is large enough for the given number of blocks.
func (f *FS) Fits(blocks uint64) error {
	last := make([]byte, f.Super.BlockSize)
	if n, err := f.disk.ReadAt(last, int64(blocks-1)*int64(len(last))); n < len(last) {
		return fmt.Errorf("the disk ends before block %d: %w", blocks-1, err)
	}
	return nil
}

// ReadSuper reads the bytes of the superblock and verifies their checksum.
func ReadSuper(disk io.ReaderAt) ([]byte, error) {
	b := make([]byte, SuperSize)
	if n, err := disk.ReadAt(b, SuperOffset); n < len(b) {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("%w: %w", ErrNotExt, err)
		}
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	return b, CheckSuper(b)
}

// Check checks that there are no unknown features, and that sizes are consistent, as
// fs/ext4/super.c does (ext4_block_group_meta_init, ext4_check_geometry).
func (s *Super) Check() error {
	if unknown := s.Incompat &^ known; unknown != 0 {
		return &FeatureError{unknown}
	}
	perBlock := s.BlockSize / uint32(max(s.InodeSize, 1))
	switch {
	case s.Blocks > 1<<62/uint64(s.BlockSize) || s.Blocks <= uint64(s.FirstDataBlock):
		return fmt.Errorf("%d blocks from block %d", s.Blocks, s.FirstDataBlock)
	case s.FirstDataBlock > 1:
		return fmt.Errorf("first data block %d", s.FirstDataBlock)
	case s.InodeSize < goodOldInodeSize || uint32(s.InodeSize) > s.BlockSize || s.InodeSize&(s.InodeSize-1) != 0:
		return fmt.Errorf("inodes of %d bytes", s.InodeSize)
	case s.DescSize < 32 || s.Incompat&Incompat64Bit != 0 && s.DescSize < 64 || uint32(s.DescSize) > s.BlockSize || s.DescSize&(s.DescSize-1) != 0:
		return fmt.Errorf("group descriptors of %d bytes", s.DescSize)
	case s.ClusterSize < s.BlockSize:
		return fmt.Errorf("clusters of %d bytes, blocks of %d", s.ClusterSize, s.BlockSize)
	case s.BlocksPerGroup == 0 || uint64(s.BlocksPerGroup) > uint64(s.BlockSize)*8*uint64(s.ClusterSize/s.BlockSize):
		return fmt.Errorf("%d blocks in a group", s.BlocksPerGroup)
	case s.InodesPerGroup < perBlock || s.InodesPerGroup > s.BlockSize*8:
		return fmt.Errorf("%d inodes in a group", s.InodesPerGroup)
	case s.Groups() > 1<<32-1 || s.Groups()*uint64(s.InodesPerGroup) != uint64(s.Inodes):
		return fmt.Errorf("%d inodes in %d groups of %d", s.Inodes, s.Groups(), s.InodesPerGroup)
	}
	return nil
}

// Contains reports whether the n blocks from b on lie within the file system.
// Blocks before the first data block do not (fs/ext4/block_validity.c,
// ext4_inode_block_valid).
func (s *Super) Contains(b addr.Block, n uint64) bool {
	return uint64(b) > uint64(s.FirstDataBlock) && uint64(b) < s.Blocks && n <= s.Blocks-uint64(b)
}

// Block reads a block.
func (f *FS) Block(b addr.Block) ([]byte, error) {
	buf := make([]byte, f.Super.BlockSize)
	return buf, f.ReadBlocks(buf, b)
}

// ReadBlocks fills buf, which holds a whole number of blocks, with the blocks from b on.
func (f *FS) ReadBlocks(buf []byte, b addr.Block) error {
	n := uint64(len(buf)) / uint64(f.Super.BlockSize)
	if uint64(b) >= f.Super.Blocks || n > f.Super.Blocks-uint64(b) {
		return fmt.Errorf("read %d blocks at block %d: the file system has %d", n, b, f.Super.Blocks)
	}
	if n, err := f.disk.ReadAt(buf, int64(b)*int64(f.Super.BlockSize)); n < len(buf) {
		return fmt.Errorf("read block %d: %w", b, err)
	}
	return nil
}

// Group is a group descriptor (fs/ext4/ext4.h, struct ext4_group_desc).
type Group struct {
	Number          uint32
	BlockBitmap     addr.Block
	InodeBitmap     addr.Block
	InodeTable      addr.Block
	FreeClusters    uint32 // bg_free_blocks_count: clusters, with bigalloc
	FreeInodes      uint32
	Directories     uint32 // bg_used_dirs_count
	UnusedInodes    uint32 // bg_itable_unused: unused ones at the end of the table
	Flags           GroupFlags
	BlockBitmapCsum uint32 // see BitmapChecksum; 16 bits if descriptors have 32 bytes
	InodeBitmapCsum uint32
}

// GroupFlags is bg_flags.
type GroupFlags uint16

// The bits of GroupFlags (EXT4_BG_*).
const (
	GroupInodeUninit GroupFlags = 1 // inode bitmap and table are not initialised
	GroupBlockUninit GroupFlags = 2 // the block bitmap is not initialised
	GroupInodeZeroed GroupFlags = 4 // the inode table is zeroed
)

// DescriptorLocation returns the block of a group's descriptor and its offset
// there (fs/ext4/super.c, descriptor_loc).
func (s *Super) DescriptorLocation(group uint32) (addr.Block, int) {
	perBlock := s.BlockSize / uint32(s.DescSize)
	n := group / perBlock
	offset := int(group%perBlock) * int(s.DescSize)
	if s.Incompat&IncompatMetaBG == 0 || n < s.FirstMetaGroup {
		super, _ := s.Location()
		return super + 1 + addr.Block(n), offset
	}
	first := n * perBlock // the group that the block lies in
	b := uint64(s.FirstDataBlock) + uint64(first)*uint64(s.BlocksPerGroup)
	if s.hasSuper(first) {
		b++
	}
	if s.BlockSize == 1024 && n == 0 && s.FirstDataBlock == 0 {
		b++
	}
	return addr.Block(b), offset
}

// hasSuper reports whether a group begins with a copy of the superblock
// (fs/ext4/balloc.c, ext4_bg_has_super).
func (s *Super) hasSuper(group uint32) bool {
	switch {
	case group == 0:
		return true
	case s.Compat&CompatSparseSuper2 != 0:
		return group == s.BackupGroups[0] || group == s.BackupGroups[1]
	case group == 1 || s.ROCompat&ROCompatSparseSuper == 0:
		return true
	case group%2 == 0:
		return false
	}
	for _, root := range []uint64{3, 5, 7} {
		power := root
		for power < uint64(group) {
			power *= root
		}
		if power == uint64(group) {
			return true
		}
	}
	return false
}

// BaseBlocks returns how many blocks at the start of a group hold a copy of the
// superblock, group descriptors, or are reserved for more descriptors
// (fs/ext4/balloc.c, ext4_num_base_meta_blocks).
func (s *Super) BaseBlocks(group uint32) uint64 {
	n := uint64(0)
	if s.hasSuper(group) {
		n = 1
	}
	perBlock := uint64(s.BlockSize / uint32(s.DescSize))
	if s.Incompat&IncompatMetaBG == 0 || uint64(group)/perBlock < uint64(s.FirstMetaGroup) {
		if n == 0 {
			return 0
		}
		blocks := (s.Groups() + perBlock - 1) / perBlock
		if s.Incompat&IncompatMetaBG != 0 {
			blocks = uint64(s.FirstMetaGroup)
		}
		return n + blocks + uint64(s.ReservedDesc)
	}
	if at := uint64(group) % perBlock; at <= 1 || at == perBlock-1 {
		n++ // ext4_bg_num_gdb_meta
	}
	return n
}

// Group reads a group descriptor.
func (f *FS) Group(n uint32) (*Group, error) {
	if uint64(n) >= f.Super.Groups() {
		return nil, fmt.Errorf("read group %d: there are only %d groups", n, f.Super.Groups())
	}
	home, offset := f.Super.DescriptorLocation(n)
	b, err := f.Block(home)
	if err != nil {
		return nil, fmt.Errorf("read group %d: %w", n, err)
	}
	return f.Super.ParseGroup(n, b[offset:offset+int(f.Super.DescSize)])
}

// ParseGroup reads the descriptor of a group and verifies its checksum, if it
// has one, and that the inode table lies in the file system.
func (s *Super) ParseGroup(n uint32, b []byte) (*Group, error) {
	if len(b) != int(s.DescSize) {
		return nil, fmt.Errorf("parse group %d: %d bytes instead of %d", n, len(b), s.DescSize)
	}
	if want, got := binary.LittleEndian.Uint16(b[0x1e:]), s.groupChecksum(n, b); want != got && s.ROCompat&(ROCompatGDTCsum|ROCompatMetadataCsum) != 0 {
		return nil, fmt.Errorf("parse group %d: %w: %#x instead of %#x", n, ErrChecksum, got, want)
	}
	u16 := func(low, high int) uint32 {
		v := uint32(binary.LittleEndian.Uint16(b[low:]))
		if len(b) >= 64 {
			v |= uint32(binary.LittleEndian.Uint16(b[high:])) << 16
		}
		return v
	}
	own := s.GroupBlocks(b)
	g := &Group{
		Number:          n,
		BlockBitmap:     own[0],
		InodeBitmap:     own[1],
		InodeTable:      own[2],
		FreeClusters:    u16(0x0c, 0x2c),
		FreeInodes:      u16(0x0e, 0x2e),
		Directories:     u16(0x10, 0x30),
		UnusedInodes:    u16(0x1c, 0x32),
		Flags:           GroupFlags(binary.LittleEndian.Uint16(b[0x12:])),
		BlockBitmapCsum: u16(0x18, 0x38),
		InodeBitmapCsum: u16(0x1a, 0x3a),
	}
	table := (uint64(s.InodesPerGroup)*uint64(s.InodeSize) + uint64(s.BlockSize) - 1) / uint64(s.BlockSize)
	if !s.Contains(g.InodeTable, table) {
		return nil, fmt.Errorf("parse group %d: inode table of %d blocks at block %d", n, table, g.InodeTable)
	}
	return g, nil
}

// GroupBlocks returns the locations of the block bitmap, the inode bitmap and the inode table, in this
// order, from a raw group descriptor. It does not verify the checksum.
func (s *Super) GroupBlocks(b []byte) [3]addr.Block {
	var out [3]addr.Block
	for n := range out {
		out[n] = addr.Block(binary.LittleEndian.Uint32(b[4*n:]))
		if len(b) >= 64 {
			out[n] |= addr.Block(binary.LittleEndian.Uint32(b[0x20+4*n:])) << 32
		}
	}
	return out
}

// groupChecksum computes bg_checksum (fs/ext4/super.c, ext4_group_desc_csum).
func (s *Super) groupChecksum(n uint32, b []byte) uint16 {
	number := binary.LittleEndian.AppendUint32(nil, n)
	if s.Checksummed() {
		sum := CRC32C(CRC32C(s.ChecksumSeed, number), b[:0x1e])
		sum = CRC32C(sum, []byte{0, 0})
		return uint16(CRC32C(sum, b[0x20:]))
	}
	sum := crc16(crc16(crc16(^uint16(0), s.UUID[:]), number), b[:0x1e])
	if s.Incompat&Incompat64Bit != 0 {
		sum = crc16(sum, b[0x20:])
	}
	return sum
}

// On returns the same file system on another disk. It does not read that disk's superblock.
func (f *FS) On(disk io.ReaderAt) *FS { return &FS{Super: f.Super, disk: disk} }
