package audit

import (
	"bytes"
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// Features whose effects on metadata are known here. The names of the others are
// in refused.
const (
	compats = ext4.CompatHasJournal | ext4.CompatSparseSuper2 | ext4.CompatFastCommit | ext4.CompatOrphanFile |
		compatDirPrealloc | ext4.CompatExtAttr | compatResizeInode | ext4.CompatDirIndex | compatStableInodes
	incompats = ext4.IncompatFiletype | ext4.IncompatRecover | ext4.IncompatMetaBG | ext4.IncompatExtents | ext4.Incompat64Bit |
		ext4.IncompatMMP | ext4.IncompatFlexBG | ext4.IncompatCsumSeed
	roCompats = ext4.ROCompatSparseSuper | ext4.ROCompatLargeFile | ext4.ROCompatHugeFile | ext4.ROCompatGDTCsum |
		ext4.ROCompatDirNlink | ext4.ROCompatExtraIsize | ext4.ROCompatMetadataCsum | ext4.ROCompatOrphanPresent | ext4.ROCompatBigalloc
)

// Features that change nothing of what is checked (fs/ext4/ext4.h).
const (
	compatDirPrealloc  ext4.Compat = 0x1
	compatResizeInode  ext4.Compat = 0x10
	compatStableInodes ext4.Compat = 0x800
)

// refused are the features that are not understood here, by their names in mke2fs. CheckAdded
// accepts those with added set.
var refused = []struct {
	name     string
	incompat ext4.Incompat
	roCompat ext4.ROCompat
	added    bool
}{
	{name: "inline_data", incompat: ext4.IncompatInlineData, added: true},
	{name: "encrypt", incompat: ext4.IncompatEncrypt, added: true},
	{name: "casefold", incompat: ext4.IncompatCasefold, added: true},
	{name: "ea_inode", incompat: ext4.IncompatEAInode, added: true},
	{name: "large_dir", incompat: ext4.IncompatLargeDir, added: true},
	{name: "verity", roCompat: ext4.ROCompatVerity, added: true},
	{name: "quota", roCompat: ext4.ROCompatQuota, added: true},
	{name: "project", roCompat: ext4.ROCompatProject, added: true},
	{name: "read-only", roCompat: ext4.ROCompatReadonly},
}

// superblock reads the new superblock, and refuses what is not understood.
func (c *checker) superblock(changed map[addr.Block][]byte) {
	for b, data := range changed {
		if len(data) != int(c.old.super.BlockSize) {
			c.note(fmt.Errorf("block %d is given with %d bytes instead of %d", b, len(data), c.old.super.BlockSize))
			return
		}
	}
	home, offset := c.old.super.Location()
	before, err := c.old.block(home)
	if !c.note(err) {
		return
	}
	after, err := c.new.block(home)
	if !c.note(err) {
		return
	}
	if !bytes.Equal(before, after) {
		if !c.note(c.compareSupers(before, after, offset)) {
			return
		}
	}
	super, err := ext4.ParseSuper(after[offset:][:ext4.SuperSize])
	if !c.note(err) {
		return
	}
	c.new.super = super
	c.note(c.judgeable())
}

// judgeable returns an error that says what about the file system is not understood.
func (c *checker) judgeable() error {
	s := &c.new.super
	for _, f := range refused {
		if c.added != nil && f.added {
			continue
		}
		if s.Incompat&f.incompat != 0 || s.ROCompat&f.roCompat != 0 {
			return foreignf("feature %s is not understood", f.name)
		}
	}
	switch {
	case c.added == nil && (s.Compat&^compats != 0 || s.Incompat&^incompats != 0 || s.ROCompat&^roCompats != 0):
		return foreignf("features %#x, %#x or %#x are not understood", uint32(s.Compat&^compats), uint32(s.Incompat&^incompats), uint32(s.ROCompat&^roCompats))
	case (c.old.super.State|s.State)&ext4.StateError != 0 || s.ErrorCount != 0:
		return foreignf("errors are recorded in the superblock")
	case !s.Linux:
		return foreignf("the superblock's creator OS is not Linux")
	case s.BlockSize > 32<<10:
		return foreignf("blocks of %d bytes are not understood", s.BlockSize)
	case s.BlocksPerGroup%8 != 0 || s.InodesPerGroup%8 != 0:
		return foreignf("groups of %d blocks and %d inodes are not understood", s.BlocksPerGroup, s.InodesPerGroup)
	case s.BlocksPerGroup > s.BlockSize*8*uint32(ratio(s)) || ratio(s) > 1 && (s.FirstDataBlock > 0 || s.BlocksPerGroup%uint32(8*ratio(s)) != 0):
		return foreignf("groups of %d blocks, in clusters of %d", s.BlocksPerGroup, ratio(s))
	}
	return nil
}

// dynamic are the fields of a superblock that a running kernel changes
// (fs/ext4/ext4.h, struct ext4_super_block), by offset and size.
var dynamic = [...][2]int{
	{0x0c, 8},                   // s_free_blocks_count_lo, s_free_inodes_count
	{0x2c, 8},                   // s_mtime, s_wtime
	{0x34, 2},                   // s_mnt_count
	{0x3a, 2},                   // s_state
	{0x5c, 12},                  // s_feature_compat, _incompat, _ro_compat
	{0x78, 16},                  // s_volume_name
	{0x88, 64},                  // s_last_mounted
	{0xe8, 4},                   // s_last_orphan
	{0x158, 4},                  // s_free_blocks_count_hi
	{0x178, 8},                  // s_kbytes_written
	{0x194, 0x200 - 0x194},      // from s_error_count to s_mount_opts
	{0x248, 4},                  // s_overhead_clusters
	{0x274, 8},                  // upper bytes of times, s_first_error_errcode, s_last_error_errcode
	{0x3fc, 4},                  // s_checksum
	{0x3fc + 4, ext4.SuperSize}, // the end
}

// fixed are the fields that never change as long as a file system exists, whatever tune2fs(8) and resize2fs(8)
// do to it while it is mounted.
var fixed = [...][2]int{
	{0x14, 20}, // from s_first_data_block to s_inodes_per_group
	{0x38, 2},  // s_magic
	{0x48, 8},  // s_creator_os, s_rev_level
	{0x54, 6},  // s_first_ino, s_inode_size
	{0xd0, 24}, // s_journal_uuid, s_journal_inum, s_journal_dev
	{0xec, 16}, // s_hash_seed
	{0xfe, 2},  // s_desc_size
	{0x108, 4}, // s_mkfs_time
	{0x174, 2}, // s_log_groups_per_flex, s_checksum_type
}

// sameFixed checks that the fixed fields are the same in two superblocks.
func sameFixed(before, after []byte) error {
	for _, field := range fixed {
		if from, to := field[0], field[0]+field[1]; !bytes.Equal(before[from:to], after[from:to]) {
			return fmt.Errorf("the superblock changes between offsets %#x and %#x", from, to)
		}
	}
	return nil
}

// Features that a kernel sets when it first needs them, or on mount.
const (
	compatGrows   = ext4.CompatExtAttr
	incompatGrows = ext4.IncompatRecover
	roCompatGrows = ext4.ROCompatLargeFile | ext4.ROCompatDirNlink | ext4.ROCompatExtraIsize | ext4.ROCompatOrphanPresent
)

// compareSupers checks that the blocks of the superblock differ only in what a
// running kernel changes by itself. What it changes on request is not understood.
func (c *checker) compareSupers(before, after []byte, offset int) error {
	end := offset + ext4.SuperSize
	if !bytes.Equal(before[:offset], after[:offset]) || !bytes.Equal(before[end:], after[end:]) {
		return errors.New("something beside the superblock changes in its block")
	}
	before, after = before[offset:end], after[offset:end]
	if err := ext4.CheckSuper(after); err != nil {
		return err
	}
	if err := sameFixed(before, after); err != nil {
		return err
	}
	at := 0
	for _, field := range dynamic {
		if stop := min(field[0], ext4.SuperSize); !bytes.Equal(before[at:stop], after[at:stop]) {
			return foreignf("the superblock changes between offsets %#x and %#x: not understood", at, stop)
		}
		at = min(field[0]+field[1], ext4.SuperSize)
	}
	s, err := ext4.ParseSuper(after)
	if err != nil {
		return err
	}
	was := &c.old.super
	if s.Compat&^compatGrows != was.Compat&^compatGrows || was.Compat&^s.Compat != 0 ||
		s.Incompat&^incompatGrows != was.Incompat&^incompatGrows ||
		s.ROCompat&^roCompatGrows != was.ROCompat&^roCompatGrows || was.ROCompat&^s.ROCompat&^ext4.ROCompatOrphanPresent != 0 {
		if s.Checksummed() { // damage would not have passed CheckSuper
			return foreignf("the superblock changes features: not understood")
		}
		return errors.New("the superblock changes features")
	}
	return nil
}
