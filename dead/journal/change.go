package journal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
)

// change is a transaction that is being prepared, and its effect on the disk.
type change struct {
	txn    *jbd2.Transaction
	fs     *ext4.FS              // the file system on before
	before io.ReaderAt           // the disk as a recovery without the transaction leaves it, except for fast commits
	blocks map[addr.Block][]byte // the blocks that the transaction changes, with their new content
	files  *audit.Mapper         // without and with blocks; nil if it is not open, or if blocks has changed since
}

// change returns a transaction, and the disk as it is before anything is written to it.
func (f *finisher) change(t *jbd2.Transaction) (*change, error) {
	if f.recovered == nil {
		fs, disk, err := recoverOn(f.disk, f.forget)
		if err != nil {
			return nil, err
		}
		f.recovered = &change{fs: fs, before: disk}
	}
	c := *f.recovered
	c.txn = t
	var err error
	c.blocks, err = changedBlocks(t, f.disk, c.before, int64(c.fs.Super.BlockSize))
	return &c, err
}

// recoverOn returns a disk as a recovery of its log leaves it, except for fast commits and what forget leaves out, and
// the file system on it. Nothing is written.
func recoverOn(disk jbd2.Disk, forget func(*jbd2.Log, *jbd2.Scan) error) (*ext4.FS, io.ReaderAt, error) {
	log, err := jbd2.Open(disk)
	if err != nil {
		return nil, nil, err
	}
	scan, err := log.Scan()
	if err == nil {
		err = forget(log, scan)
	}
	if err != nil {
		return nil, nil, err
	}
	return log.Recovered(scan)
}

// changedBlocks returns the blocks of a transaction, and those that it revokes: these keep the content
// that they have on the disk, whatever the log has of them.
func changedBlocks(t *jbd2.Transaction, disk, before io.ReaderAt, size int64) (map[addr.Block][]byte, error) {
	changed := make(map[addr.Block][]byte, len(t.Blocks))
	for _, b := range t.Blocks {
		changed[b.Home] = b.Data
	}
	recovered := make([]byte, size)
	for _, b := range t.Revokes {
		if _, written := changed[b]; written {
			continue
		}
		now := make([]byte, size)
		if _, err := disk.ReadAt(now, int64(b)*size); err != nil {
			return nil, fmt.Errorf("read revoked block %d: %w", b, err)
		}
		if _, err := before.ReadAt(recovered, int64(b)*size); err != nil {
			return nil, fmt.Errorf("read revoked block %d: %w", b, err)
		}
		if !bytes.Equal(now, recovered) {
			changed[b] = now
		}
	}
	return changed, nil
}

// replace changes a block of the transaction, or adds one.
func (c *change) replace(home addr.Block, data []byte) error {
	return c.replaceAll(map[addr.Block][]byte{home: data})
}

// replaceAll replaces several blocks, in the order of their numbers.
func (c *change) replaceAll(blocks map[addr.Block][]byte) error {
	for _, home := range c.txn.Revokes {
		if _, both := blocks[home]; both {
			return fmt.Errorf("%w: block %d of metadata is revoked", ErrDamaged, home)
		}
	}
	c.files = nil
	have := make(map[addr.Block]int, len(c.txn.Blocks))
	for n, b := range c.txn.Blocks {
		have[b.Home] = n
	}
	for _, home := range slices.Sorted(maps.Keys(blocks)) {
		c.blocks[home] = blocks[home]
		if n, there := have[home]; there {
			c.txn.Blocks[n].Data = blocks[home]
		} else {
			c.txn.Blocks = append(c.txn.Blocks, jbd2.Block{Home: home, Data: blocks[home]})
		}
	}
	return nil
}

// after returns the disk with the transaction.
func (c *change) after() (*jbd2.Recording, error) {
	with := jbd2.NewRecording(c.before)
	for b, data := range c.blocks {
		if _, err := with.WriteAt(data, int64(b)*int64(len(data))); err != nil {
			return nil, err
		}
	}
	return with, nil
}

// errGrows says that a file system was being made larger (resize2fs(8)): only a kernel can judge what is in
// groups that the disk does not have yet.
var errGrows = errors.New("the last commit makes the file system larger: not understood")

// grows reports whether the transaction makes the file system larger.
func (c *change) grows() bool {
	home, offset := c.fs.Super.Location()
	b, there := c.blocks[home]
	if !there {
		return false
	}
	s, err := ext4.ParseSuper(b[offset:][:ext4.SuperSize])
	return err == nil && s.Blocks != c.fs.Super.Blocks
}

// plausible refuses blocks that no kernel has in memory with that many handles open.
func (c *change) plausible(m audit.Memory, handles int) error {
	err := m.Plausible(c.before, c.blocks, handles)
	if errors.Is(err, audit.ErrDamaged) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return err
}

// seal sets the checksums of group descriptors and inodes that were being written; their content is
// for the check to judge. Without its descriptor nothing in a group is found, and e2fsck gives up at
// an inode on the orphan list whose checksum is wrong (e2fsck/super.c,
// release_orphan_inode).
func (c *change) seal() error {
	descriptors, err := audit.Descriptors(c.before, c.blocks)
	if err == nil {
		err = c.replaceAll(descriptors)
	}
	if err != nil {
		return err
	}
	torn, err := audit.Torn(c.before, c.blocks)
	if err != nil {
		return err
	}
	for _, slot := range torn {
		b := bytes.Clone(c.blocks[slot.Block])
		c.fs.Super.SealInode(slot.Ino, b[slot.Offset:][:c.fs.Super.InodeSize])
		if err := c.replace(slot.Block, b); err != nil {
			return err
		}
	}
	return nil
}

// free frees an inode of the transaction. Its bitmap bits and its blocks are left to the check.
func (c *change) free(n addr.Ino) error {
	group, block, offset, err := c.fs.Super.InodeLocation(n)
	if err != nil {
		return err
	}
	g, err := c.fs.Group(group)
	if err != nil {
		return err
	}
	home := g.InodeTable + addr.Block(block)
	b := bytes.Clone(c.blocks[home])
	if len(b) == 0 {
		return fmt.Errorf("%w: inode %d is not in the transaction", ErrDamaged, n)
	}
	raw := b[offset:][:c.fs.Super.InodeSize]
	c.fs.Super.Free(raw)
	c.fs.Super.SealInode(n, raw)
	return c.replace(home, b)
}

// tree returns the block mapping of a file without and with the transaction. Nodes that
// were being written get their checksums in the transaction.
func (c *change) tree(n addr.Ino) (*audit.Trees, error) {
	var err error
	if c.files == nil {
		c.files, err = audit.NewMapper(c.before, c.blocks)
	}
	if err != nil {
		return nil, err
	}
	found, err := c.files.Tree(n)
	if err == nil && len(found.Torn) > 0 {
		err = c.replaceAll(found.Torn)
	}
	if err != nil {
		return nil, err
	}
	return found, nil
}

// markUnclean makes the superblock say that the file system is not clean, so that it is checked
// whatever becomes of the takeover. If the superblock said that there are errors, e2fsck would not trust the orphan list.
func (c *change) markUnclean() error {
	home, offset := c.fs.Super.Location()
	b := bytes.Clone(c.blocks[home])
	if b == nil {
		b = make([]byte, c.fs.Super.BlockSize)
		if _, err := c.before.ReadAt(b, int64(home)*int64(len(b))); err != nil {
			return fmt.Errorf("read superblock: %w", err)
		}
	}
	super, err := ext4.SetUnclean(b[offset:])
	if err != nil {
		return err
	}
	copy(b[offset:], super)
	return c.replace(home, b)
}
