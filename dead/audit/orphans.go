package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// source is where an orphan is noted.
type source int

const (
	inList source = iota
	inFile
)

// readOrphans reads which inodes are to be deleted or truncated on mount. An inode
// that becomes an orphan, or ceases to be one, counts as touched.
func (c *checker) readOrphans() {
	var err error
	if c.orphans.old, err = c.old.orphans(&unclaimed{}); err != nil {
		c.note(asItWas(fmt.Errorf("orphans: %w", err)))
		return
	}
	if c.orphans.new, err = c.new.orphans(&c.unclaimed); err != nil {
		c.note(fmt.Errorf("orphans: %w", err))
		return
	}
	for _, pair := range [][2]map[addr.Ino]source{{c.orphans.old, c.orphans.new}, {c.orphans.new, c.orphans.old}} {
		for _, n := range sorted(pair[0]) {
			if _, both := pair[1][n]; both {
				continue
			}
			if !c.note(c.touch(n)) {
				return
			}
			c.inodes[n].whole = true
		}
	}
}

// Truncating returns the orphans that have names: a mount cuts them to their size. Its
// arguments are those of Check.
func Truncating(old io.ReaderAt, changed map[addr.Block][]byte) ([]*ext4.Inode, error) {
	fs, err := ext4.Open(old)
	if err != nil {
		return nil, fmt.Errorf("look for orphans: %w", err)
	}
	c := newChecker(fs.Super, old, changed)
	c.superblock(changed)
	orphans, err := c.new.orphans(&unclaimed{})
	if err = errors.Join(c.failed, err); err != nil {
		return nil, fmt.Errorf("look for orphans: %w", err)
	}
	var out []*ext4.Inode
	for _, n := range sorted(orphans) {
		i, err := c.new.load(n)
		if err != nil {
			return nil, fmt.Errorf("look for orphans: %w", err)
		}
		if i.Links > 0 {
			out = append(out, i)
		}
	}
	return out, nil
}

// orphans reads the orphan list and the orphan file. It removes the blocks of the
// orphan file from unclaimed.
func (v *view) orphans(unclaimed *unclaimed) (map[addr.Ino]source, error) {
	out := make(map[addr.Ino]source)
	for n := v.super.LastOrphan; n != 0; {
		i, err := v.orphan(out, n, inList)
		if err != nil {
			return nil, err
		}
		n = addr.Ino(i.Deleted)
	}
	if v.super.OrphanFile == 0 {
		if v.super.ROCompat&ext4.ROCompatOrphanPresent != 0 {
			return nil, errors.New("the orphan_present feature is set, but there is no orphan file")
		}
		return out, nil
	}
	listed := len(out)
	if err := v.orphanFile(out, unclaimed); err != nil {
		return nil, fmt.Errorf("orphan file: %w", err)
	}
	if len(out) > listed && v.super.ROCompat&ext4.ROCompatOrphanPresent == 0 {
		return nil, errors.New("the orphan file has entries, but the orphan_present feature is not set")
	}
	return out, nil
}

// orphan adds an inode to out that is noted as an orphan.
func (v *view) orphan(out map[addr.Ino]source, n addr.Ino, from source) (*ext4.Inode, error) {
	if _, there := out[n]; there || n < v.super.FirstInode {
		return nil, fmt.Errorf("inode %d is listed twice, or is reserved", n)
	}
	i, err := v.load(n)
	if err != nil {
		return nil, err
	}
	out[n] = from
	return i, nil
}

func (v *view) orphanFile(out map[addr.Ino]source, unclaimed *unclaimed) error {
	file, err := v.load(v.super.OrphanFile)
	if err != nil {
		return err
	}
	m := mapper{v: v, inode: file}
	if err := errors.Join(m.index(), m.read()); err != nil {
		return err
	}
	for _, x := range m.out.extents {
		for b := x.start; b < x.start+addr.Block(x.length); b++ {
			if err := v.orphanBlock(file, b, out); err != nil {
				return fmt.Errorf("block %d: %w", b, err)
			}
		}
		unclaimed.take(run{x.start, x.start + addr.Block(x.length)})
	}
	return nil
}

func (v *view) orphanBlock(file *ext4.Inode, block addr.Block, out map[addr.Ino]source) error {
	b, err := v.block(block)
	if err != nil {
		return err
	}
	entries, err := v.super.OrphanBlock(file, block, b)
	if err != nil {
		return err
	}
	for ; len(entries) >= 4; entries = entries[4:] {
		n := addr.Ino(binary.LittleEndian.Uint32(entries))
		if n == 0 {
			continue
		}
		i, err := v.orphan(out, n, inFile)
		if err != nil {
			return err
		}
		if i.Deleted != 0 {
			return fmt.Errorf("inode %d is in the orphan file, and on the orphan list, too", n)
		}
	}
	return nil
}

// checkOrphans judges orphans that did not change otherwise: those that are
// touched were judged with the inodes.
func (c *checker) checkOrphans() {
	for _, n := range sorted(c.orphans.new) {
		if c.inodes[n] != nil {
			continue
		}
		i, err := c.new.load(n)
		if err == nil && i.Links > 0 && !i.IsRegular() {
			err = fmt.Errorf("inode %d is an orphan with links, but not a regular file", n)
		}
		if !c.note(err) {
			return
		}
	}
}
