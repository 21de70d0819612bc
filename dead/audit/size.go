package audit

import (
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/ext4"
)

// checkSectors checks that i_blocks of an inode changes by as many blocks as it gains or
// loses.
func (c *checker) checkSectors(i *inode) error {
	got := i.new.Sectors
	if i.new.Flags&ext4.InodeHugeFile != 0 {
		got *= uint64(c.new.super.BlockSize / 512)
	}
	if want := c.sectorsOf(i); got != want {
		return fmt.Errorf("inode %d counts %d sectors and has %d", i.number, got, want)
	}
	return nil
}

// sectorsOf returns how many sectors of 512 bytes an inode has: those that it counted before,
// changed by the blocks that it gained or lost.
func (c *checker) sectorsOf(i *inode) uint64 {
	blocks, sectors := uint64(0), uint64(0)
	if i.old != nil {
		blocks = c.blocks(i.old)
		sectors = i.old.Sectors
		if i.old.Flags&ext4.InodeHugeFile != 0 {
			sectors *= uint64(c.old.super.BlockSize / 512)
		}
	}
	return sectors + (c.blocks(i.new)-blocks)*uint64(c.new.super.BlockSize/512) // wraps around and back
}

// blocks returns how many of an inode's blocks were seen, in whole clusters.
func (c *checker) blocks(s *state) uint64 {
	n := s.file.count
	if ratio(&c.new.super) > 1 {
		n = s.owned // all of its leaves are looked at
	}
	if s.Attributes != 0 {
		n++
	}
	return n * ratio(&c.new.super)
}

// checkSize checks that a file has no blocks behind its end, and a directory no hole before
// it. An inode on the orphan list that a mount truncates may have anything.
func (c *checker) checkSize(i *inode) error {
	n := i.new
	block := uint64(c.new.super.BlockSize)
	_, orphan := c.orphans.new[i.number]
	switch {
	case orphan:
		return nil
	case n.IsDir():
		blocks := c.directoryBlocks(n)
		if n.Size != uint64(len(blocks))*block || n.Size == 0 || slices.Contains(blocks, 0) {
			return fmt.Errorf("inode %d is a directory of %d bytes, and not all of its %d blocks are there", n.Number, n.Size, len(blocks))
		}
		return nil
	case !n.IsRegular():
		return nil
	}
	if last, ok := c.beyond(i); ok {
		return fmt.Errorf("inode %d has %d bytes, and content in its block %d, which is beyond its end", n.Number, n.Size, last)
	}
	if n.Flags&ext4.InodeExtents == 0 {
		perBlock := block / 4
		if limit := inodeBlocks + perBlock + perBlock*perBlock + perBlock*perBlock*perBlock; n.Size > limit*block {
			return fmt.Errorf("inode %d has %d bytes, more than it can map", n.Number, n.Size)
		}
	} else if n.Size > maxExtents*block-1 {
		return fmt.Errorf("inode %d has %d bytes, more than it can map", n.Number, n.Size)
	}
	if n.Size >= 1<<31 && c.new.super.ROCompat&ext4.ROCompatLargeFile == 0 {
		return fmt.Errorf("inode %d is a large file, but the file system lacks the large_file feature", n.Number)
	}
	return nil
}

// beyond returns the number of a block of content that a file has behind its end; false if it
// has none, or is an orphan. e2fsck lets one such block pass in a tree without levels (e2fsck/pass1.c, check_blocks), and none in others
// (scan_extent_node); ext4 leaves none.
func (c *checker) beyond(i *inode) (uint64, bool) {
	if _, orphan := c.orphans.new[i.number]; orphan {
		return 0, false
	}
	for _, x := range i.new.file.extents {
		if last := x.logical + x.length - 1; !x.unwritten && i.new.Size <= last*uint64(c.new.super.BlockSize) {
			return last, true
		}
	}
	return 0, false
}
