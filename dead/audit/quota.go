package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// Quota files (fs/quota/quotaio_v2.h, quota_tree.h) have blocks of 1 KiB. A block of entries
// has a header, and entries of the second revision.
const (
	quotaBlock  = 1 << 10
	quotaHeader = 16
	quotaEntry  = 72
	quotaSpace  = 48 // dqb_curspace in an entry, in bytes
)

// quotaOwner has the offsets of the IDs that an inode counts for: its user, group and project,
// each in two halves (fs/ext4/ext4.h, struct ext4_inode).
var quotaOwner = [len(ext4.Super{}.Quotas)][2]int{{0x02, 0x78}, {0x18, 0x7a}, {0x9c, 0x9e}}

// claimQuotas takes the changed blocks of the quota files.
func (c *checker) claimQuotas() {
	for _, n := range c.new.super.Quotas {
		if n == 0 {
			continue
		}
		m, err := c.new.tree(n, nil)
		if !c.note(err) {
			return
		}
		for _, x := range m.out.extents {
			c.unclaimed.take(run{x.start, x.start + addr.Block(x.length)})
		}
	}
}

// checkQuotas checks that quota files count exactly what files gained, and change in nothing
// else. It does not walk their trees: it finds entries by what changes.
func (c *checker) checkQuotas() {
	for kind, n := range c.new.super.Quotas {
		if n != 0 && !c.note(c.checkQuota(kind, n)) {
			return
		}
	}
}

func (c *checker) checkQuota(kind int, n addr.Ino) error {
	want, err := c.gained(kind)
	if err != nil {
		return err
	}
	m, err := c.new.tree(n, nil)
	if err != nil {
		return err
	}
	for _, x := range m.out.extents {
		for b := x.start; b < x.start+addr.Block(x.length); b++ {
			if !c.changed(b) {
				continue
			}
			if err := c.quotaChanges(b, want); err != nil {
				return fmt.Errorf("quota file %d: %w", n, err)
			}
		}
	}
	for id, bytes := range want {
		if bytes != 0 {
			return fmt.Errorf("quota file %d counts %d bytes less than ID %d has gained", n, bytes, id)
		}
	}
	return nil
}

// gained returns how many more bytes each user, group or project has than before.
func (c *checker) gained(kind int) (map[uint32]uint64, error) {
	out := make(map[uint32]uint64)
	for _, i := range c.list {
		id := uint32(0) // that of an inode without room for an ID
		if low, high := quotaOwner[kind][0], quotaOwner[kind][1]; high+2 <= i.new.fields() {
			if !bytes.Equal(i.old.raw[low:low+2], i.new.raw[low:low+2]) || !bytes.Equal(i.old.raw[high:high+2], i.new.raw[high:high+2]) {
				return nil, fmt.Errorf("inode %d changes its owner", i.number)
			}
			id = uint32(binary.LittleEndian.Uint16(i.new.raw[low:])) | uint32(binary.LittleEndian.Uint16(i.new.raw[high:]))<<16
		}
		out[id] += (c.blocks(i.new) - c.blocks(i.old)) * uint64(c.new.super.BlockSize)
	}
	return out, nil
}

// fields returns the offset at which the fields of an inode end, in bytes.
func (s *state) fields() int {
	if len(s.raw) <= 128 {
		return len(s.raw)
	}
	return 128 + int(binary.LittleEndian.Uint16(s.raw[128:]))
}

// quotaChanges subtracts from want what the entries of a block count more than before.
func (c *checker) quotaChanges(b addr.Block, want map[uint32]uint64) error {
	before, err := c.old.block(b)
	if err != nil {
		return err
	}
	after, err := c.new.block(b)
	if err != nil {
		return err
	}
	rest := bytes.Clone(after)
	for at := 0; at < len(after); at += quotaBlock {
		for e := at + quotaHeader; e+quotaEntry <= at+quotaBlock; e += quotaEntry {
			space := rest[e+quotaSpace : e+quotaSpace+8]
			is, was := binary.LittleEndian.Uint64(space), binary.LittleEndian.Uint64(before[e+quotaSpace:])
			if is == was {
				continue
			}
			copy(space, before[e+quotaSpace:])
			want[binary.LittleEndian.Uint32(after[e:])] -= is - was
		}
	}
	if !bytes.Equal(rest, before) {
		return errors.New("it changes in more than dqb_curspace")
	}
	return nil
}
