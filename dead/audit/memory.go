package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// Memory is what the dead kernel's memory adds to two states of a disk. Nothing is taken for
// sound because memory says so: it only tells what to look at and, by names, which of its two
// ends an operation is to be brought to. A field that is nil is not known.
type Memory struct {
	Names Names
	// Inodes returns the inodes that the kernel had in memory. Operations in flight may have
	// changed a block of such an inode, and not yet the inode itself.
	Inodes func() ([]Known, error)
	// Inode returns what an inode must have in its block of the inode table, if the kernel had the inode in memory and no
	// operation was changing it: the map of its blocks (i_block), 60 bytes, and its size. The size in memory may be ahead of the
	// block for as many inodes as handles were open.
	Inode func(addr.Ino) (root []byte, size int64, known bool)
	// File returns the inode whose content a block is according to the kernel; 0 if it is not the
	// content of a file, or this is not known. An overwrite in place need not change the inode.
	File func(addr.Block) addr.Ino
}

// Known is an inode that the dead kernel had in memory.
type Known struct {
	Ino        addr.Ino
	Generation uint32
	Quota      bool // it is a quota file with a name (usrjquota=): its content changes, and the inode does not
	Busy       bool // it was locked: an operation on it was in flight
	Torn       bool // the kernel may have been writing it to its block
}

// Check is the function Check with a kernel's memory.
func (m Memory) Check(old io.ReaderAt, changed map[addr.Block][]byte) (Verdict, error) {
	fs, err := ext4.Open(old)
	if err != nil {
		return Verdict{}, fmt.Errorf("audit: %w", err)
	}
	c := newChecker(fs.Super, old, changed)
	c.memory = m
	c.run(changed)
	if c.failed == nil && !c.verdict.Foreign && len(c.verdict.Reasons) > 0 {
		if err := c.excuse(old); err != nil {
			return Verdict{}, err
		}
	}
	return c.result()
}

// Bounds of a search in memory for the owners of blocks.
const (
	maxBusy   = 1 << 8 // inodes that are looked into because they were busy
	maxSought = 1 << 6 // blocks whose checksums are compared with each inode's
	maxQuotas = 3      // files of quotas: of users, groups and projects (include/linux/quota.h, MAXQUOTAS)
)

// known looks for owners among the inodes in memory: files whose content the blocks are; quota files, which the kernel
// writes through its journal, seldom changing their inodes (fs/ext4/super.c, ext4_quota_write); inodes to which the
// checksum of an unclaimed block belongs; or, without checksums, inodes that were busy.
func (c *checker) known() error {
	if err := c.files(); err != nil {
		return err
	}
	if c.memory.Inodes == nil {
		return nil
	}
	all, err := c.memory.Inodes()
	if err != nil {
		return err
	}
	quotas := 0
	for _, k := range all {
		if !k.Quota || quotas == maxQuotas {
			continue
		}
		quotas++
		i, err := c.new.load(k.Ino)
		if errors.Is(err, errFree) || err == nil && i.Flags&quotaFlags != quotaFlags {
			continue
		}
		if err == nil {
			err = c.candidate(k.Ino, true)
		}
		if err != nil {
			return err
		}
	}
	return c.owners(all)
}

// files looks into the files whose content the unclaimed blocks are according to memory.
func (c *checker) files() error {
	if c.memory.File == nil {
		return nil
	}
	for _, b := range slices.Clone(c.unclaimed) {
		n := c.memory.File(b)
		if _, left := slices.BinarySearch(c.unclaimed, b); !left || n == 0 {
			continue
		}
		if err := c.candidate(n, true); err != nil {
			return err
		}
	}
	return nil
}

// quotaFlags are the flags that a file has on the disk while it is in use for quotas (fs/ext4/super.c, ext4_quota_on:
// EXT4_NOATIME_FL and EXT4_IMMUTABLE_FL).
const quotaFlags = flagImmutable | 0x80

// owners looks into the inodes to which the checksum of an unclaimed block belongs, or that were busy.
func (c *checker) owners(all []Known) error {
	if len(c.unclaimed) > maxSought {
		return nil
	}
	sought, err := c.sought()
	if err != nil {
		return err
	}
	busy := 0
	for _, k := range all {
		switch {
		case len(c.unclaimed) == 0:
			return nil
		case c.sealed(k, sought):
		case c.new.super.Checksummed() || !k.Busy || busy == maxBusy:
			continue
		default:
			busy++
		}
		if err := c.candidate(k.Ino, true); err != nil {
			return err
		}
	}
	return nil
}

// sought returns the old and the new bytes of the unclaimed blocks, if blocks have
// checksums.
func (c *checker) sought() ([][]byte, error) {
	if !c.new.super.Checksummed() {
		return nil, nil
	}
	var out [][]byte
	for _, at := range c.unclaimed {
		for _, v := range []*view{c.old, c.new} {
			b, err := v.block(at)
			if err != nil {
				return nil, err
			}
			out = append(out, b)
		}
	}
	return out, nil
}

// sealed reports whether one of the blocks has the checksum of an extent node or directory leaf of an inode.
func (c *checker) sealed(k Known, blocks [][]byte) bool {
	s := &c.new.super
	seed := ext4.CRC32C(s.ChecksumSeed, binary.LittleEndian.AppendUint32(nil, uint32(k.Ino)))
	i := &ext4.Inode{Number: k.Ino, Seed: ext4.CRC32C(seed, binary.LittleEndian.AppendUint32(nil, k.Generation))}
	return slices.ContainsFunc(blocks, func(b []byte) bool {
		if binary.LittleEndian.Uint16(b) == ext4.ExtentMagic {
			return s.CheckExtentBlock(i, b) == nil
		}
		return c.new.checkLeaf(i, b) == nil
	})
}
