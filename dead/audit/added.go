package audit

import (
	"bytes"
	"fmt"
	"io"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// added is what CheckAdded knows beyond the two states.
type added struct {
	without *view // the disk without the change that comes before, too
}

// CheckAdded judges blocks that are added to a change which is consistent by itself, as a
// kernel's transaction is after which no operation was in flight. with is the disk with that
// change, without is the disk before it. The added blocks may change only regular files and
// the metadata that counts their blocks; what the files gain must be free on both disks. Due
// to this limit CheckAdded accepts file systems with features that Check does not know.
func CheckAdded(with, without io.ReaderAt, blocks map[addr.Block][]byte) (Verdict, error) {
	fs, err := ext4.Open(with)
	if err != nil {
		return Verdict{}, fmt.Errorf("audit: %w", err)
	}
	c := newChecker(fs.Super, with, blocks)
	c.added = &added{without: newView(fs.Super, without, nil, c.budget)}
	c.steps(
		func() { c.superblock(blocks) },
		func() { c.classify(blocks) },
		c.slots,
		c.readOrphans,
		c.onlyFiles,
		c.walkAll,
		c.claimQuotas,
		c.claimRest,
		c.onlyFiles, // again, for the inodes that claimed the rest
		c.checkOwners,
		c.checkFree,
		c.checkInodes,
		c.checkGroups,
		c.checkQuotas,
	)
	return c.result()
}

// onlyFiles checks that only regular files change, and only in what a write to them
// changes.
func (c *checker) onlyFiles() {
	for _, i := range c.all() {
		n := i.number
		_, orphan := c.orphans.new[n]
		if i.old == nil || i.new == nil || !i.old.IsRegular() || i.old.Mode != i.new.Mode || i.old.Links != i.new.Links || i.new.Links == 0 ||
			i.old.Generation != i.new.Generation || i.old.Attributes != i.new.Attributes || i.old.Size > i.new.Size || orphan {
			c.note(fmt.Errorf("inode %d changes in more than its content", n))
			return
		}
		if i.new.Flags&ext4.InodeInlineData != 0 && !sameButTimes(i.old.raw, i.new.raw) {
			c.note(fmt.Errorf("the inline data of inode %d changes", n))
			return
		}
		// Inline data may grow out of the inode.
		const grows = ext4.InodeInlineData | ext4.InodeExtents
		if i.old.Flags&foreign&^grows != 0 || (i.old.Flags^i.new.Flags)&^grows != 0 ||
			(i.old.Flags^i.new.Flags)&ext4.InodeExtents != 0 && i.old.Flags&ext4.InodeInlineData == 0 {
			c.note(fmt.Errorf("the flags of inode %d go from %#x to %#x", n, i.old.Flags, i.new.Flags))
			return
		}
	}
}

// sameButTimes reports whether two raw inodes are equal except for their times and checksum
// (fs/ext4/ext4.h, struct ext4_inode).
func sameButTimes(a, b []byte) bool {
	at := 0
	for _, field := range [][2]int{{0x08, 0x14}, {0x7c, 0x7e}, {0x82, 0x90}, {len(a), len(a)}} {
		if to := min(field[0], len(a)); at < to && !bytes.Equal(a[at:to], b[at:to]) {
			return false
		}
		at = field[1]
	}
	return true
}

// checkFree checks that what files gain was free without the change that comes before, too.
func (c *checker) checkFree() {
	for r, change := range differences(c.ownedBy(oldState), c.ownedBy(newState)) {
		if change != taken {
			continue
		}
		for p := range byGroup(&c.new.super, r) {
			before, err := c.added.without.blockMap(p.group)
			if err == nil && !before.all(p.from, p.to, false) {
				err = fmt.Errorf("blocks from cluster %d on are taken, and were in use before the transaction", p.run.from)
			}
			if !c.note(err) {
				return
			}
		}
	}
}

func oldState(i *inode) *state { return i.old }
func newState(i *inode) *state { return i.new }

// ownedBy returns the clusters of all touched inodes in one of their two states. Each cluster
// was found to have one owner before.
func (c *checker) ownedBy(which func(*inode) *state) []run {
	var out []run
	for _, i := range c.all() {
		if s := which(i); s != nil {
			out, _ = s.clusters(out, ratio(&c.new.super)) // checkOwners has had the error
		}
	}
	_ = merge(&out) // likewise
	return out
}
