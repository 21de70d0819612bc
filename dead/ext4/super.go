// Package ext4 reads the structure of an ext2, ext3 or ext4 file system from its
// disk. It trusts the bytes only as far as their checksums vouch for them.
//
// # Caveats
//
// The package reads what is on the disk. Until the journal is replayed, that is
// older than the state that the file system has committed.
package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/addr"
)

// SuperOffset and SuperSize are the offset of the superblock on the device and its
// size, in bytes.
const (
	SuperOffset = 1024
	SuperSize   = 1024
)

// ErrNotExt says that there is no superblock of the ext family.
var ErrNotExt = errors.New("not an ext file system")

// ErrChecksum says that bytes do not have the checksum that they carry.
var ErrChecksum = errors.New("wrong checksum")

// Super is a superblock (fs/ext4/ext4.h, struct ext4_super_block).
type Super struct {
	UUID       addr.UUID
	Compat     Compat
	Incompat   Incompat
	ROCompat   ROCompat
	MountTime  uint64 // s_mtime: seconds since 1970, 40 bits
	MountCount uint16 // s_mnt_count: mounts since the last check
	WriteTime  uint64 // s_wtime: last write of the superblock, likewise
	CheckTime  uint64 // s_lastcheck: last full check, likewise
	State      State
	ErrorCount uint32 // s_error_count: since the last check

	BlockSize      uint32 // in bytes
	ClusterSize    uint32 // in bytes: unit of allocation; BlockSize without bigalloc
	Blocks         uint64 // s_blocks_count
	FirstDataBlock uint32 // 1 if blocks have 1 KiB, else usually 0
	BlocksPerGroup uint32
	InodesPerGroup uint32
	Inodes         uint32    // s_inodes_count
	FirstInode     addr.Ino  // s_first_ino: below it are the file system's own inodes
	InodeSize      uint16    // in bytes
	DescSize       uint16    // of a group descriptor, in bytes
	FirstMetaGroup uint32    // s_first_meta_bg
	BackupGroups   [2]uint32 // s_backup_bgs, with CompatSparseSuper2
	ReservedDesc   uint32    // s_reserved_gdt_blocks: reserved for more group descriptors, behind the existing ones
	FlexSize       uint64    // groups whose bitmaps and inode tables lie together, with IncompatFlexBG; else 1
	ChecksumSeed   uint32    // initial value of metadata checksums
	Linux          bool      // s_creator_os is Linux: else inodes have no checksums

	JournalInode  addr.Ino  // s_journal_inum; 0 if the journal is external, or there is none
	JournalDevice uint32    // s_journal_dev: of an external journal, as the kernel encodes it
	JournalUUID   addr.UUID // s_journal_uuid: of an external journal
	// JournalBackup is s_jnl_blocks: i_block of the journal's inode, and its size;
	// nil if s_jnl_backup_type says that there is none.
	JournalBackup *JournalBackup
	LastOrphan    addr.Ino // s_last_orphan: head of the list of inodes to delete or truncate
	OrphanFile    addr.Ino // s_orphan_file_inum, with CompatOrphanFile

	// Quotas are the inodes of the quota files of users, groups and projects
	// (s_usr_quota_inum, s_grp_quota_inum, s_prj_quota_inum), with ROCompatQuota; else 0.
	Quotas [3]addr.Ino

	mmpBlock addr.Block // s_mmp_block, with IncompatMMP

	HashSeed     [4]uint32 // s_hash_seed: of names in directories
	HashUnsigned bool      // s_flags: the hash takes characters as unsigned
}

// JournalBackup is what the superblock remembers of the journal's inode.
type JournalBackup struct {
	Block [inodeBlockSize]byte // i_block
	Size  uint64               // in bytes
}

// NeedsReplay reports whether the journal is in use: a mount replays it.
// Without the flag a mount empties it unread (fs/ext4/super.c,
// ext4_load_journal).
func (s *Super) NeedsReplay() bool { return s.Incompat&IncompatRecover != 0 }

// Checksummed reports whether metadata carries checksums (metadata_csum).
func (s *Super) Checksummed() bool { return s.ROCompat&ROCompatMetadataCsum != 0 }

// Internal reports whether an inode is the file system's own. The orphan file and the project
// quota file are its own, too, although mke2fs(8) gives them numbers in the range of files.
func (s *Super) Internal(n addr.Ino) bool {
	return n < s.FirstInode || n == s.JournalInode || n == s.OrphanFile || slices.Contains(s.Quotas[:], n)
}

// Groups returns the number of block groups.
func (s *Super) Groups() uint64 {
	if s.BlocksPerGroup == 0 || s.Blocks <= uint64(s.FirstDataBlock) {
		return 0
	}
	return (s.Blocks - uint64(s.FirstDataBlock) + uint64(s.BlocksPerGroup) - 1) / uint64(s.BlocksPerGroup)
}

// Location returns the block that the superblock lies in, and its offset there.
func (s *Super) Location() (addr.Block, int) {
	return addr.Block(SuperOffset / s.BlockSize), int(SuperOffset % s.BlockSize)
}

// Offsets of s_state, s_last_orphan and s_checksum.
const (
	stateOffset      = 0x3a
	lastOrphanOffset = 0xe8
	checksumOffset   = 0x3fc
)

// ParseSuper parses the SuperSize bytes of a superblock, from disk or from memory:
// the layout is the same. It does not verify the checksum, which has no meaning in
// memory; see CheckSuper.
func ParseSuper(b []byte) (Super, error) {
	var s Super
	if len(b) < SuperSize {
		return s, fmt.Errorf("parse superblock: %d bytes: %w", len(b), ErrNotExt)
	}
	u16 := func(off int) uint16 { return binary.LittleEndian.Uint16(b[off:]) }
	u32 := func(off int) uint32 { return binary.LittleEndian.Uint32(b[off:]) }
	if u16(0x38) != 0xef53 {
		return s, fmt.Errorf("parse superblock: %w", ErrNotExt)
	}
	shift := u32(0x18)
	if shift > 6 {
		return s, fmt.Errorf("parse superblock: block size 1024 << %d: %w", shift, ErrNotExt)
	}
	s.UUID = addr.UUID(b[0x68:0x78])
	s.Compat, s.Incompat, s.ROCompat = Compat(u32(0x5c)), Incompat(u32(0x60)), ROCompat(u32(0x64))
	s.MountTime = uint64(u32(0x2c)) | uint64(b[0x275])<<32
	s.WriteTime = uint64(u32(0x30)) | uint64(b[0x274])<<32
	s.CheckTime = uint64(u32(0x40)) | uint64(b[0x277])<<32
	s.MountCount, s.State, s.ErrorCount = u16(0x34), State(u16(0x3a)), u32(errorOffset)
	s.BlockSize = 1024 << shift
	s.ClusterSize = s.BlockSize
	s.Blocks = uint64(u32(0x04))
	s.FirstDataBlock, s.BlocksPerGroup, s.InodesPerGroup = u32(0x14), u32(0x20), u32(0x28)
	s.Inodes, s.FirstInode, s.InodeSize = u32(0x00), addr.Ino(u32(0x54)), u16(0x58)
	if u32(0x4c) == 0 { // EXT4_GOOD_OLD_REV: no such fields
		s.FirstInode, s.InodeSize = 11, goodOldInodeSize
	}
	s.DescSize = 32
	if s.Incompat&Incompat64Bit != 0 {
		s.DescSize = u16(0xfe)
		s.Blocks |= uint64(u32(0x150)) << 32
	}
	if shift := u32(0x1c); s.ROCompat&ROCompatBigalloc != 0 {
		if shift > 20 { // EXT4_MAX_CLUSTER_LOG_SIZE - EXT4_MIN_BLOCK_LOG_SIZE
			return s, fmt.Errorf("parse superblock: cluster size 1024 << %d: %w", shift, ErrNotExt)
		}
		s.ClusterSize = 1024 << shift
	}
	s.FirstMetaGroup = u32(0x104)
	s.BackupGroups = [2]uint32{u32(0x24c), u32(0x250)}
	s.ChecksumSeed = CRC32C(^uint32(0), s.UUID[:])
	if s.Incompat&IncompatCsumSeed != 0 {
		s.ChecksumSeed = u32(0x270)
	}
	s.Linux = u32(0x48) == 0
	s.ReservedDesc, s.FlexSize = uint32(u16(0xce)), 1
	if shift := b[0x174]; s.Incompat&IncompatFlexBG != 0 && shift < 32 {
		s.FlexSize <<= shift
	}
	if s.Incompat&IncompatMMP != 0 {
		s.mmpBlock = addr.Block(u32(0x168)) | addr.Block(u32(0x16c))<<32
	}
	s.HashSeed = [4]uint32{u32(0xec), u32(0xf0), u32(0xf4), u32(0xf8)}
	s.HashUnsigned = u32(0x160)&2 != 0 // EXT2_FLAGS_UNSIGNED_HASH
	if s.ROCompat&ROCompatQuota != 0 {
		s.Quotas = [3]addr.Ino{addr.Ino(u32(0x240)), addr.Ino(u32(0x244)), addr.Ino(u32(0x26c))}
	}
	s.parseJournal(b)
	return s, nil
}

// parseJournal parses the fields of the journal and of the orphans.
func (s *Super) parseJournal(b []byte) {
	u32 := func(off int) uint32 { return binary.LittleEndian.Uint32(b[off:]) }
	s.LastOrphan = addr.Ino(u32(lastOrphanOffset))
	if s.Compat&CompatOrphanFile != 0 {
		s.OrphanFile = addr.Ino(u32(0x280))
	}
	if s.Compat&CompatHasJournal == 0 {
		return
	}
	s.JournalUUID = addr.UUID(b[0xd0:0xe0])
	s.JournalInode, s.JournalDevice = addr.Ino(u32(0xe0)), u32(0xe4)
	if b[0xfd] == 1 { // EXT3_JNL_BACKUP_BLOCKS, only e2fsprogs uses it (lib/ext2fs/ext2_fs.h)
		s.JournalBackup = &JournalBackup{
			Block: [inodeBlockSize]byte(b[0x10c:]),
			Size:  uint64(u32(0x10c+16*4)) | uint64(u32(0x10c+15*4))<<32,
		}
	}
}

// CheckSuper verifies the checksum of a superblock that has one.
func CheckSuper(b []byte) error {
	s, err := ParseSuper(b)
	if err != nil || !s.Checksummed() {
		return err
	}
	if kind := b[0x175]; kind != 1 { // EXT4_CRC32C_CHKSUM
		return fmt.Errorf("check superblock: checksums of unknown type %d", kind)
	}
	if want, got := binary.LittleEndian.Uint32(b[checksumOffset:]), CRC32C(^uint32(0), b[:checksumOffset]); want != got {
		return fmt.Errorf("check superblock: %w: %#x instead of %#x", ErrChecksum, got, want)
	}
	return nil
}

// seal sets the checksum of b, if it has one, and returns b.
func seal(b []byte) []byte {
	if s, err := ParseSuper(b); err == nil && s.Checksummed() {
		binary.LittleEndian.PutUint32(b[checksumOffset:], CRC32C(^uint32(0), b[:checksumOffset]))
	}
	return b
}

// SetRecover returns a copy of the superblock b which says whether the journal is
// in use, with its checksum. It does not change b.
func SetRecover(b []byte, inUse bool) ([]byte, error) {
	return edit(b, func(out []byte) {
		incompat := binary.LittleEndian.Uint32(out[0x60:]) &^ uint32(IncompatRecover)
		if inUse {
			incompat |= uint32(IncompatRecover)
		}
		binary.LittleEndian.PutUint32(out[0x60:], incompat)
	})
}

// SetLastOrphan returns a copy of the superblock b whose orphan list begins with inode n,
// with its checksum; 0 means an empty list. It does not change b.
func SetLastOrphan(b []byte, n addr.Ino) ([]byte, error) {
	return edit(b, func(out []byte) { binary.LittleEndian.PutUint32(out[lastOrphanOffset:], uint32(n)) })
}

// SetUnclean returns a copy of the superblock b which says that the file system was not
// unmounted cleanly, so that e2fsck(8) checks all of it, with its checksum. It does not change b.
func SetUnclean(b []byte) ([]byte, error) {
	return edit(b, func(out []byte) {
		state := binary.LittleEndian.Uint16(out[stateOffset:]) &^ uint16(StateValid)
		binary.LittleEndian.PutUint16(out[stateOffset:], state)
	})
}

func edit(b []byte, do func(out []byte)) ([]byte, error) {
	if _, err := ParseSuper(b); err != nil {
		return nil, err
	}
	out := append([]byte(nil), b[:SuperSize]...)
	do(out)
	return seal(out), nil
}

// The range of the superblock's fields about errors: from s_error_count up to
// s_mount_opts (fs/ext4/ext4.h, EXT4_S_ERR_START, EXT4_S_ERR_END).
const (
	errorOffset = 0x194
	errorEnd    = 0x200
)

// Replayed returns the superblock that a replay leaves, given the one in the
// journal and the one that was on the disk. The kernel writes errors to the disk
// past the journal, so the disk's fields about errors are kept (fs/ext4/super.c,
// ext4_load_journal; the flag since 6.2). The journal is in use until it is
// emptied, whatever logged says.
func Replayed(logged, disk []byte) ([]byte, error) {
	before, err := ParseSuper(disk)
	if err != nil {
		return nil, err
	}
	out, err := SetRecover(logged, true)
	if err != nil {
		return nil, fmt.Errorf("in the journal: %w", err)
	}
	copy(out[errorOffset:errorEnd], disk[errorOffset:errorEnd])
	state := binary.LittleEndian.Uint16(out[stateOffset:]) | uint16(before.State&StateError)
	binary.LittleEndian.PutUint16(out[stateOffset:], state)
	return seal(out), nil
}
