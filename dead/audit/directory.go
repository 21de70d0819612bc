package audit

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// maxDirectory bounds the number of blocks of a directory that is understood.
const maxDirectory = 1 << 20

// directoryBlocks returns the blocks of a directory in order; 0 for a hole.
func (c *checker) directoryBlocks(s *state) []addr.Block {
	if !s.live() {
		return nil
	}
	end := uint64(0)
	for _, x := range s.file.extents {
		end = max(end, x.logical+x.length)
	}
	if end > maxDirectory {
		return nil
	}
	out := make([]addr.Block, end)
	for _, x := range s.file.extents {
		for n := range x.length {
			if !x.unwritten {
				out[x.logical+n] = x.start + addr.Block(n)
			}
		}
	}
	return out
}

// directory is a directory that is being checked.
type directory struct {
	*inode
	before, after []addr.Block
	leaves        map[int][]entry // by number of the block; those that were read
	added         bool            // it may have new names
	indexed       bool
	// The content of its index, if that was read.
	index map[int]span // of the leaves
	nodes map[int]struct{}
	hash  byte // kind of hash
}

// checkDirectories goes through the blocks of directories that differ.
func (c *checker) checkDirectories() {
	for _, i := range c.all() {
		if !i.old.live() && !i.new.live() {
			continue
		}
		c.verdict.Touched.Directories++
		if err := c.checkDirectory(i); err != nil {
			err = fmt.Errorf("directory %d: %w", i.number, err)
			if !c.note(err) {
				return
			}
		}
	}
}

func (c *checker) checkDirectory(i *inode) error {
	d := &directory{inode: i, before: c.directoryBlocks(i.old), after: c.directoryBlocks(i.new), leaves: make(map[int][]entry)}
	differ := c.differing(d)
	if i.new.live() {
		d.indexed = c.hasIndex(i.new)
		was := i.old.live() && c.hasIndex(i.old) && d.same()
		if was && !d.indexed {
			return errors.New("it loses its htree index (EXT4_INDEX_FL)")
		}
		if d.indexed && (len(differ) > 0 || !was) {
			if err := c.readIndex(d); err != nil {
				return fmt.Errorf("index: %w", err)
			}
		}
	}
	for _, n := range differ {
		if err := c.checkBlock(d, n); err != nil {
			return fmt.Errorf("block %d: %w", n, err)
		}
	}
	if !i.new.live() {
		return nil
	}
	if d.indexed {
		return c.checkHashes(d)
	}
	return c.checkUnique(d)
}

// hasIndex reports whether a directory has an index that the kernel uses. Without the dir_index feature (tune2fs -O
// ^dir_index) it takes the blocks of an old index for empty ones, and clears the flag with the first change of the directory
// (fs/ext4/ext4.h, ext4_update_dx_flag).
func (c *checker) hasIndex(s *state) bool {
	return s.Flags&ext4.InodeIndex != 0 && c.new.super.Compat&ext4.CompatDirIndex != 0
}

// differing returns the numbers of the blocks of a directory that are not the
// same as before.
func (c *checker) differing(d *directory) []int {
	var out []int
	for n := range max(len(d.before), len(d.after)) {
		if n < len(d.before) && n < len(d.after) && d.before[n] == d.after[n] && d.same() {
			if !c.changed(d.after[n]) {
				continue
			}
		}
		out = append(out, n)
	}
	return out
}

// same reports whether it is still the same directory, and not another one with the same
// inode number.
func (d *directory) same() bool { return d.old.Generation == d.new.Generation }

// changed reports whether a block differs.
func (c *checker) changed(b addr.Block) bool {
	_, ok := c.different[b]
	return ok
}

// checkBlock judges a block of a directory that differs, and counts its entries.
func (c *checker) checkBlock(d *directory, n int) error {
	var before, after []entry
	if n < len(d.before) && d.before[n] != 0 {
		b, err := c.old.block(d.before[n])
		if err != nil {
			return err
		}
		if before, err = c.old.lenient(b); err != nil {
			return asItWas(err)
		}
	}
	if n < len(d.after) && d.after[n] != 0 {
		var err error
		if after, err = c.readBlock(d, n); err != nil {
			return err
		}
		if err := c.checkEntryNames(d.number, n == 0, after); err != nil {
			return err
		}
		c.verdict.Touched.Entries += len(after)
	}
	c.compareEntries(d.number, n == 0, before, after)
	if n < len(d.after) {
		c.newPlaces(d.number, d.after[n], n == 0, before, after)
	}
	d.added = d.added || len(after) > 0
	return nil
}

// readBlock returns the entries of a block in the new state.
func (c *checker) readBlock(d *directory, n int) ([]entry, error) {
	b, err := c.new.block(d.after[n])
	if err != nil {
		return nil, err
	}
	if d.indexed && n == 0 {
		list, err := c.new.lenient(b)
		if err == nil && len(list) != 2 {
			err = errors.New("its dx_root block has entries other than dot and dotdot")
		}
		return list, err
	}
	if _, ok := d.nodes[n]; ok {
		return nil, nil // its form was checked with the index
	}
	list, err := c.new.leafEntries(d.new.Inode, b)
	if err == nil {
		d.leaves[n] = list
	}
	return list, err
}

// checkUnique checks that no name is there twice, in a directory without an index.
func (c *checker) checkUnique(d *directory) error {
	if !d.added {
		return nil
	}
	names := make(map[string]struct{})
	for n := range d.after {
		list, ok := d.leaves[n]
		if !ok {
			var err error
			if list, err = c.readBlock(d, n); err != nil {
				return fmt.Errorf("block %d: %w", n, err)
			}
		}
		for _, e := range list {
			if _, there := names[string(e.name)]; there {
				return fmt.Errorf("name %q is there twice", e.name)
			}
			names[string(e.name)] = struct{}{}
		}
	}
	return nil
}
