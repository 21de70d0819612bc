package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// inode is a touched inode, in its old and its new state.
type inode struct {
	number   addr.Ino
	old, new *state // nil if it is not allocated in that state
	whole    bool   // all of its blocks are looked at, and not only what differs

	states [2]state // what old and new point to
	parsed [2]ext4.Inode
}

// state is an allocated inode in one view.
type state struct {
	*ext4.Inode
	raw   []byte
	file  mapping
	owned uint64 // clusters in file; counted with bigalloc only
}

// live reports whether it is a directory that counts: one that has links.
func (s *state) live() bool { return s != nil && s.IsDir() && s.Links > 0 }

// touch reads an inode in both states, and adds it to the touched ones.
func (c *checker) touch(n addr.Ino) error {
	if c.inodes[n] != nil {
		return nil
	}
	if len(c.blank) == 0 {
		c.blank = make([]inode, 32)
	}
	i := &c.blank[0]
	c.blank, i.number = c.blank[1:], n
	raw, allocated, err := c.old.inode(n)
	if err != nil {
		return err
	}
	if allocated {
		if err := c.old.super.ReadInode(&i.parsed[0], n, raw); err != nil {
			return asItWas(err)
		}
		i.old = &i.states[0]
		i.old.Inode, i.old.raw = &i.parsed[0], raw
	}
	before := raw
	if raw, allocated, err = c.new.inode(n); err != nil {
		return err
	}
	if allocated || !zero(raw) {
		if err := c.new.super.ReadInode(&i.parsed[1], n, raw); err != nil {
			return err
		}
		if allocated {
			i.new = &i.states[1]
			i.new.Inode, i.new.raw = &i.parsed[1], raw
			if err := c.checkReused(i, before); err != nil {
				return err
			}
		} else if err := c.checkFreed(&i.parsed[1]); err != nil {
			return err
		}
	}
	c.inodes[n] = i
	c.list = append(c.list, i)
	return nil
}

func zero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// checkFreed judges an inode that is free but was used before.
func (c *checker) checkFreed(i *ext4.Inode) error {
	switch {
	case i.Links != 0:
		return fmt.Errorf("inode %d is free but has %d links", i.Number, i.Links)
	case i.Deleted == 0 && i.Mode != 0:
		return fmt.Errorf("inode %d is free but was never deleted", i.Number)
	case i.Deleted != 0 && i.Deleted < c.new.super.Inodes:
		return fmt.Errorf("inode %d is free but on a list of orphans", i.Number)
	}
	return nil
}

// checkReused judges an inode that is in use now, by its old bytes in the table. If it was in use there, but free in the
// bitmap, that is a fault from before: a kernel notices it when it gives the inode to another file, and has set the inode's
// bit by then (fs/ext4/ialloc.c, __ext4_new_inode). Its record of the error may come with a later transaction.
func (c *checker) checkReused(i *inode, before []byte) error {
	if i.old != nil || zero(before) || c.old.super.ReadInode(&i.parsed[0], i.number, before) != nil {
		return nil
	}
	if was := &i.parsed[0]; was.Links != 0 && was.Deleted == 0 && was.Generation == i.new.Generation {
		return foreignf("inode %d was free and had %d links", i.number, was.Links)
	}
	return nil
}

// checkInodes judges each inode by itself.
func (c *checker) checkInodes() {
	checks := []func(*inode) error{c.checkFields, c.checkKind, c.checkExtra, c.checkSectors, c.checkSize}
	for _, i := range c.all() {
		if !c.note(c.checkNumber(i)) {
			return
		}
		if i.new == nil {
			continue
		}
		for _, check := range checks {
			if !c.note(check(i)) {
				return
			}
		}
	}
}

// rootInode is the inode of the root directory (fs/ext4/ext4.h, EXT4_ROOT_INO).
const rootInode addr.Ino = 2

// checkNumber checks that the file system's own inodes do not change. Those of the quotas, of the boot loader
// (EXT4_IOC_SWAP_BOOT) and of the blocks reserved to grow (3, 4, 5 and 7) change with what is not understood.
func (c *checker) checkNumber(i *inode) error {
	if slices.Contains([]addr.Ino{3, 4, 5, 7}, i.number) {
		return foreignf("inode %d changes: not understood", i.number)
	}
	own := i.number < c.new.super.FirstInode && i.number != rootInode
	if own || i.number == c.new.super.OrphanFile && c.new.super.OrphanFile != 0 || i.number == c.new.super.JournalInode {
		return fmt.Errorf("inode %d changes, which is reserved, the journal or the orphan file", i.number)
	}
	if i.number == rootInode && (!i.old.live() || !i.new.live()) {
		return errors.New("the root inode is not a directory")
	}
	return nil
}

// foreign are flags of inodes that are not understood.
const foreign = ext4.InodeInlineData | ext4.InodeEAInode | ext4.InodeEncrypted | ext4.InodeVerity | ext4.InodeCasefold | flagImagic

// Flags of inodes (fs/ext4/ext4.h).
const (
	flagImmutable ext4.InodeFlags = 0x10
	flagAppend    ext4.InodeFlags = 0x20
	flagImagic    ext4.InodeFlags = 0x2000
)

// checkFields judges what all kinds of inodes have in common (e2fsck, pass 1).
func (c *checker) checkFields(i *inode) error {
	s, n := &c.new.super, i.new
	high := func(off int) bool { return binary.LittleEndian.Uint16(n.raw[off:]) != 0 }
	_, orphan := c.orphans.new[i.number]
	switch {
	case n.Flags&foreign != 0 && (c.added == nil || n.Flags&foreign != ext4.InodeInlineData): // see onlyFiles
		return foreignf("inode %d has flags %#x, which are not understood", n.Number, n.Flags)
	case ratio(s) > 1 && n.Flags&ext4.InodeExtents == 0 && c.mapped(n):
		return foreignf("inode %d has pointers to blocks in clusters, which are not understood", n.Number)
	case n.Flags&ext4.InodeExtents != 0 && s.Incompat&ext4.IncompatExtents == 0:
		return fmt.Errorf("inode %d has extents, but the file system lacks the extent feature", n.Number)
	case n.Links == 0 && !orphan:
		return fmt.Errorf("inode %d has no links and is no orphan", n.Number)
	case n.Deleted != 0 && !orphan:
		return fmt.Errorf("inode %d is in use, but deleted (i_dtime is set) and not on the orphan list", n.Number)
	case binary.LittleEndian.Uint32(n.raw[0x70:]) != 0: // i_obso_faddr
		return fmt.Errorf("inode %d has a fragment", n.Number)
	case high(0x76) && s.Incompat&ext4.Incompat64Bit == 0:
		return fmt.Errorf("inode %d has its attributes at block %d, but the file system lacks the 64bit feature", n.Number, n.Attributes)
	case high(0x74) && s.ROCompat&ext4.ROCompatHugeFile == 0:
		return fmt.Errorf("inode %d has %d sectors, but the file system lacks the huge_file feature", n.Number, n.Sectors)
	case n.Flags&ext4.InodeHugeFile != 0 && (s.ROCompat&ext4.ROCompatHugeFile == 0 || high(0x74)):
		return fmt.Errorf("inode %d has EXT4_HUGE_FILE_FL, which the huge_file feature or its i_blocks_high does not allow", n.Number)
	}
	return nil
}

// checkKind judges what depends on the kind of file.
func (c *checker) checkKind(i *inode) error {
	n := i.new
	special := false
	switch n.Mode & 0xf000 {
	case 0x8000, 0x4000, 0xa000:
	case 0x1000, 0x2000, 0x6000, 0xc000: // FIFO, character and block device, socket
		special = true
	default:
		return fmt.Errorf("inode %d has mode %#o", n.Number, n.Mode)
	}
	_, orphan := c.orphans.new[i.number]
	switch {
	case special && (n.Size != 0 || n.Flags&(ext4.InodeExtents|ext4.InodeIndex|flagImmutable|flagAppend) != 0):
		return fmt.Errorf("inode %d is a special file of %d bytes with flags %#x", n.Number, n.Size, n.Flags)
	case orphan && n.Links > 0 && !n.IsRegular():
		return fmt.Errorf("inode %d is an orphan with links, but not a regular file", n.Number)
	case !n.IsDir() && n.Flags&ext4.InodeIndex != 0:
		return fmt.Errorf("inode %d is no directory and has an index", n.Number)
	case n.IsDir() && n.Size >= 1<<32:
		return fmt.Errorf("inode %d is a directory of %d bytes", n.Number, n.Size)
	case n.IsDir() && n.Flags&ext4.InodeIndex != 0 && !c.hasIndex(n) && !c.oldIndex(i):
		return fmt.Errorf("inode %d has an htree index, but the file system lacks the dir_index feature", n.Number)
	case n.IsSymlink() && n.Links > 0:
		return c.checkSymlink(n)
	}
	return nil
}

// oldIndex reports whether a directory may have an index without the dir_index feature: it is from before the feature was
// taken away. With checksums, no kernel reads such a directory (fs/ext4/inode.c, __ext4_iget).
func (c *checker) oldIndex(i *inode) bool {
	return i.old.live() && i.old.Generation == i.new.Generation && i.old.Flags&ext4.InodeIndex != 0 && !c.new.super.Checksummed()
}

// checkSymlink checks that the target is as long as i_size says.
func (c *checker) checkSymlink(n *state) error {
	target := n.Block[:]
	if !c.fast(n) {
		m := &n.file
		if len(m.nodes) > 0 || len(m.extents) != 1 || m.extents[0].logical != 0 || m.extents[0].length != 1 || m.extents[0].unwritten {
			return fmt.Errorf("inode %d is a symbolic link of more than one block", n.Number)
		}
		var err error
		if target, err = c.new.block(m.extents[0].start); err != nil {
			return err
		}
	} else if n.Flags&ext4.InodeExtents != 0 {
		return fmt.Errorf("inode %d is a short symbolic link with extents", n.Number)
	}
	end := bytes.IndexByte(target, 0)
	if end <= 0 || uint64(end) != n.Size || n.Flags&(flagImmutable|flagAppend) != 0 {
		return fmt.Errorf("inode %d is a symbolic link of %d bytes, and its target has %d", n.Number, n.Size, end)
	}
	return nil
}

// fast reports whether a symbolic link has its target in the inode: there are no
// blocks but that of its attributes, which counts as a cluster (fs/ext4/inode.c,
// ext4_inode_is_fast_symlink).
func (c *checker) fast(n *state) bool {
	sectors := uint64(0)
	if n.Attributes != 0 {
		sectors = c.sectors(n, ratio(&c.new.super))
	}
	return n.IsSymlink() && n.Sectors == sectors
}

// mapped reports whether an inode has blocks at all.
func (c *checker) mapped(n *state) bool {
	return n.Flags&ext4.InodeInlineData == 0 && (n.IsRegular() || n.IsDir() || n.IsSymlink() && !c.fast(n))
}

// sectors returns what i_blocks of an inode counts for a number of blocks.
func (c *checker) sectors(n *state, blocks uint64) uint64 {
	if n.Flags&ext4.InodeHugeFile != 0 {
		return blocks
	}
	return blocks * uint64(c.new.super.BlockSize/512)
}
