package audit

import (
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// checkGroups judges the counts and the inode bitmaps of the groups that are
// touched.
func (c *checker) checkGroups() {
	flips, directories := c.countInodes()
	for _, n := range sorted(c.groups) {
		if !c.note(c.checkGroup(n, flips[n], directories[n])) {
			return
		}
	}
}

// countInodes returns how many inodes are allocated or freed in each group, and how many
// more directories it has, and marks these groups as touched.
func (c *checker) countInodes() (map[uint32]uint64, map[uint32]int) {
	flips, directories := make(map[uint32]uint64), make(map[uint32]int)
	for _, i := range c.list {
		group := uint32((i.number - 1) / addr.Ino(c.new.super.InodesPerGroup))
		if (i.old == nil) != (i.new == nil) {
			flips[group]++
			c.groups[group] = struct{}{}
		}
		if i.old != nil && i.old.IsDir() {
			directories[group]--
		}
		if i.new != nil && i.new.IsDir() {
			directories[group]++
		}
	}
	for group, delta := range directories {
		if delta != 0 {
			c.groups[group] = struct{}{}
		}
	}
	return flips, directories
}

func (c *checker) checkGroup(n uint32, flips uint64, directories int) error {
	old, err := c.old.group(n)
	if err != nil {
		return err
	}
	g, err := c.new.group(n)
	if err != nil {
		return err
	}
	blocks, err := c.new.blockMap(n)
	if err != nil {
		return err
	}
	_, size := groupClusters(&c.new.super, n)
	if free := size - blocks.count(size); free != uint64(g.FreeClusters) {
		before, err := c.old.blockMap(n)
		if err != nil {
			return err
		}
		return miscounts("blocks", n, free, uint64(g.FreeClusters), size-before.count(size), uint64(old.FreeClusters))
	}
	if !blocks.all(size, uint64(c.new.super.BlockSize)*8, true) {
		return fmt.Errorf("the block bitmap of group %d has clear bits beyond the end of the group", n)
	}
	if int(g.Directories) != int(old.Directories)+directories {
		return fmt.Errorf("group %d goes from %d directories to %d, but its directories change by %+d", n, old.Directories, g.Directories, directories)
	}
	return c.checkInodeMap(old, g, flips)
}

// miscounts returns the error for a group whose count differs from its bitmap. If the count was wrong
// by just as much before, the transaction did not cause that: the error is foreign.
func miscounts(what string, group uint32, free, counts, freeBefore, countsBefore uint64) error {
	if counts-free == countsBefore-freeBefore {
		return foreignf("group %d counted %d free %s before, and had %d: not understood", group, countsBefore, what, freeBefore)
	}
	return fmt.Errorf("group %d counts %d free %s and has %d", group, counts, what, free)
}

// checkInodeMap checks that the inode bitmap of a group differs in as many inodes as are
// allocated or freed.
func (c *checker) checkInodeMap(old, g *ext4.Group, flips uint64) error {
	before, err := c.old.inodeMap(g.Number)
	if err != nil {
		return err
	}
	after, err := c.new.inodeMap(g.Number)
	if err != nil {
		return err
	}
	size := uint64(c.new.super.InodesPerGroup)
	unused := c.new.unused(g)
	switch differ := before.differ(after, size); {
	case differ != flips:
		return fmt.Errorf("the inode bitmap of group %d changes for %d inodes, but %d are allocated or freed", g.Number, differ, flips)
	case size-after.count(size) != uint64(g.FreeInodes):
		return miscounts("inodes", g.Number, size-after.count(size), uint64(g.FreeInodes), size-before.count(size), uint64(old.FreeInodes))
	case !after.all(size-uint64(unused), size, false):
		return fmt.Errorf("group %d has inodes in use among its last %d, which bg_itable_unused says are unused", g.Number, unused)
	case g.Flags&ext4.GroupInodeUninit == 0 && !after.all(size, uint64(c.new.super.BlockSize)*8, true):
		return fmt.Errorf("the inode bitmap of group %d has clear bits beyond the end of the group", g.Number)
	}
	return c.checkUncovered(g, size-uint64(c.old.unused(old)), size-uint64(unused))
}

// checkUncovered judges the inodes that bg_itable_unused no longer covers, and
// that are not in use.
func (c *checker) checkUncovered(g *ext4.Group, from, to uint64) error {
	for n := from; n < to; n++ {
		ino := addr.Ino(uint64(g.Number)*uint64(c.new.super.InodesPerGroup) + n + 1)
		if c.inodes[ino] != nil {
			continue
		}
		raw, allocated, err := c.new.inode(ino)
		if err != nil {
			return err
		}
		if allocated || zero(raw) {
			continue
		}
		i, err := c.new.super.ParseInode(ino, raw)
		if err != nil {
			return err
		}
		if err := c.checkFreed(i); err != nil {
			return err
		}
	}
	return nil
}
