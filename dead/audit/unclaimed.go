package audit

import (
	"errors"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// walkAll maps all touched inodes, and lets them claim their metadata.
func (c *checker) walkAll() {
	for _, i := range c.all() {
		if !c.note(c.walk(i, i.whole || i.isDir())) {
			return
		}
		c.claim(i)
	}
}

func (i *inode) isDir() bool {
	return i.old != nil && i.old.IsDir() || i.new != nil && i.new.IsDir()
}

// unclaimed are changed blocks that no inode has claimed yet, in order.
type unclaimed []addr.Block

// take removes the blocks in a run.
func (l *unclaimed) take(r run) {
	from, _ := slices.BinarySearch(*l, r.from)
	to, _ := slices.BinarySearch(*l, r.to)
	if from < to {
		*l = slices.Delete(*l, from, to)
	}
}

// claim removes the metadata of an inode from the unclaimed blocks. The content of regular
// files is considered last.
func (c *checker) claim(i *inode) {
	if i.old != nil { // others may use them still: see checkShared
		c.unclaimed.take(run{i.old.Attributes, i.old.Attributes + 1})
	}
	if i.new == nil {
		return
	}
	for _, b := range i.new.file.nodes {
		c.unclaimed.take(run{b, b + 1})
	}
	c.unclaimed.take(run{i.new.Attributes, i.new.Attributes + 1})
	if !i.new.IsRegular() {
		c.claimContent(i)
	}
}

func (c *checker) claimContent(i *inode) {
	for _, x := range i.new.file.extents {
		c.unclaimed.take(run{x.start, x.start + addr.Block(x.length)})
	}
}

// claimRest finds the owners of the blocks that are still unclaimed.
func (c *checker) claimRest() {
	c.findOwners()
	for _, b := range c.unclaimed {
		if !c.note(c.unowned(b)) {
			return
		}
	}
}

// unowned returns the error for a changed block that no inode claims. Copies of the superblock and of group
// descriptors change when a file system gets another label, or grows (fs/ext4/ioctl.c, ext4_update_superblocks_fn).
func (c *checker) unowned(b addr.Block) error {
	if group, at := groupOf(&c.new.super, b); at < c.new.super.BaseBlocks(group) {
		return foreignf("block %d changes, which is for copies of the superblock and of group descriptors: not understood", b)
	}
	return fmt.Errorf("block %d changes, but belongs to no inode that changes", b)
}

// findOwners looks for the owners of the unclaimed blocks: a block may be free, be the
// content of a file, or belong to an inode that did not change itself.
func (c *checker) findOwners() {
	for _, find := range []func() error{c.drop, c.content, c.deep, c.candidates, c.known} {
		if len(c.unclaimed) == 0 {
			return
		}
		if !c.note(find()) {
			return
		}
	}
}

// drop removes free blocks from the unclaimed ones: their content does not count.
func (c *checker) drop() error {
	var used unclaimed
	for _, b := range c.unclaimed {
		group, n := groupOf(&c.new.super, b)
		bits, err := c.new.blockMap(group)
		if err != nil {
			return err
		}
		if bits.has(n / ratio(&c.new.super)) {
			used = append(used, b)
		}
	}
	c.unclaimed = used
	return nil
}

// content claims blocks that are the content of touched files (data=journal).
func (c *checker) content() error {
	for _, i := range c.list {
		if i.new != nil && i.new.IsRegular() {
			c.claimContent(i)
		}
	}
	return nil
}

// deep reads the whole mapping of the touched files, and claims their content.
func (c *checker) deep() error {
	for _, i := range c.all() {
		if i.new == nil || !i.new.IsRegular() || len(i.new.file.leaves) == 0 {
			continue
		}
		probe := mapper{v: c.new, inode: i.new.Inode}
		if err := errors.Join(probe.index(), probe.read()); err != nil {
			return fmt.Errorf("inode %d: %w", i.number, err)
		}
		c.claimContent(&inode{new: &state{Inode: i.new.Inode, file: probe.out}})
		if len(c.unclaimed) == 0 {
			return nil
		}
	}
	return nil
}

// candidates looks into inodes that were written again without a change: the kernel
// does so with each inode whose blocks it changes. Where nothing in their table block was changed, the content
// of files is not considered: memory knows whose it is (known).
func (c *checker) candidates() error {
	perBlock := addr.Ino(c.new.super.BlockSize / uint32(c.new.super.InodeSize))
	for _, t := range c.tables {
		for n := t.first; n < t.first+perBlock && len(c.unclaimed) > 0; n++ {
			if err := c.candidate(n, !t.same); err != nil {
				return err
			}
		}
	}
	return nil
}

// candidate lets an inode claim the unclaimed blocks that it owns, with or without its content. If it owns any, it is touched.
func (c *checker) candidate(n addr.Ino, content bool) error {
	if c.inodes[n] != nil {
		return nil
	}
	parsed, err := c.new.load(n)
	if errors.Is(err, errFree) {
		return nil
	}
	if err != nil {
		return err
	}
	i := &inode{number: n, new: &state{Inode: parsed}}
	if c.mapped(i.new) {
		if i.new.file, err = c.mapping(parsed, content); err != nil {
			return fmt.Errorf("inode %d: %w", n, err)
		}
	}
	before := len(c.unclaimed)
	c.claim(i)
	if content {
		c.claimContent(i)
	}
	if len(c.unclaimed) == before {
		return nil
	}
	if err := c.touch(n); err != nil {
		return err
	}
	return c.walk(c.inodes[n], true)
}

// mapping returns how an inode is mapped. Unless content is set, the leaves of a regular file are not read.
func (c *checker) mapping(i *ext4.Inode, content bool) (mapping, error) {
	probe := mapper{v: c.new, inode: i}
	if err := probe.index(); err != nil {
		return probe.out, err
	}
	if content || !i.IsRegular() {
		return probe.out, probe.read()
	}
	for _, l := range probe.out.leaves {
		probe.out.nodes = append(probe.out.nodes, l.block)
	}
	return probe.out, nil
}
