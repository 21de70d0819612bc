package audit

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	mathbits "math/bits"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// Descriptors returns the blocks of group descriptors that need to be mended. In them, descriptors
// that were being changed have their own checksums (fs/ext4/super.c, ext4_group_desc_csum_set) and
// those of their bitmaps. Without the latter, e2fsck gives up on a file system with quotas (its
// quota.c reads the bitmaps first; seen in 1.47.0). The arguments are those of Check.
func Descriptors(old io.ReaderAt, changed map[addr.Block][]byte) (map[addr.Block][]byte, error) {
	fs, err := ext4.Open(old)
	if err != nil {
		return nil, fmt.Errorf("look for torn group descriptors: %w", err)
	}
	m := &mender{super: fs.Super, old: old, over: maps.Clone(changed), out: &Mended{Blocks: make(map[addr.Block][]byte)}}
	m.checker = newChecker(m.super, old, m.over)
	err = m.mendDescriptors()
	if err == nil {
		m.classify(m.over)
		err = m.failed
	}
	if err == nil {
		err = m.mendBitmapSums()
	}
	if err != nil {
		return nil, fmt.Errorf("look for torn group descriptors: %w", err)
	}
	return m.out.Blocks, nil
}

// mendDescriptors sets the checksums of group descriptors that were being changed.
func (m *mender) mendDescriptors() error {
	size := int(m.super.DescSize)
	for _, at := range sorted(m.over) {
		first, ok := m.describes(at)
		if !ok || !m.new.protected() {
			continue
		}
		before, err := m.checker.old.block(at)
		if err != nil {
			return err
		}
		after := m.over[at]
		for off := 0; off+size <= len(after); off += size {
			n := first + uint32(off/size)
			if uint64(n) >= m.super.Groups() || bytes.Equal(before[off:off+size], after[off:off+size]) {
				continue
			}
			sealed := bytes.Clone(after[off : off+size])
			if m.super.SealGroup(n, sealed); bytes.Equal(sealed, after[off:off+size]) {
				continue
			}
			b, err := m.edit(at)
			if err != nil {
				return err
			}
			copy(b[off:], sealed)
			m.tell("descriptor of group %d: checksum", n)
		}
	}
	return nil
}

// setGroup writes the descriptor of a group.
func (m *mender) setGroup(g *ext4.Group) error {
	home, offset := m.super.DescriptorLocation(g.Number)
	b, err := m.edit(home)
	if err != nil {
		return err
	}
	m.super.SetGroup(b[offset:offset+int(m.super.DescSize)], g)
	return nil
}

// mendBitmapSums sets the checksums of the bitmaps in the descriptors of changed groups.
func (m *mender) mendBitmapSums() error {
	if !m.super.Checksummed() {
		return nil
	}
	for _, n := range sorted(m.groups) {
		g, err := m.new.group(n)
		if err != nil {
			return err
		}
		is := *g
		if g.Flags&ext4.GroupBlockUninit == 0 {
			b, err := m.new.block(g.BlockBitmap)
			if err != nil {
				return err
			}
			is.BlockBitmapCsum = m.super.BitmapChecksum(b)
		}
		if g.Flags&ext4.GroupInodeUninit == 0 {
			b, err := m.new.block(g.InodeBitmap)
			if err != nil {
				return err
			}
			is.InodeBitmapCsum = m.super.InodeBitmapChecksum(b)
		}
		if is != *g {
			m.tell("bitmaps of group %d: checksum", n)
			if err := m.setGroup(&is); err != nil {
				return err
			}
		}
	}
	return nil
}

// setInodeMap writes the inode bitmap of a group.
func (m *mender) setInodeMap(n uint32, bits bits) error {
	g, err := m.new.group(n)
	if err != nil {
		return err
	}
	b, err := m.edit(g.InodeBitmap)
	if err != nil {
		return err
	}
	copy(b, bits)
	is := *g
	is.InodeBitmapCsum = m.super.InodeBitmapChecksum(b)
	return m.setGroup(&is)
}

// mendGroups makes the block bitmaps of touched groups differ from the old ones in exactly what
// inodes gained and lost, and makes the counts agree with the bitmaps.
func (m *mender) mendGroups() error {
	m.checkAttributes()
	if m.failed != nil || len(m.verdict.Reasons) > 0 {
		return nil
	}
	_, directories := m.countInodes()
	blocks, err := m.owned()
	if err != nil {
		return err
	}
	for _, n := range sorted(m.groups) {
		if blocks[n] == nil {
			before, err := m.checker.old.blockMap(n)
			if err != nil {
				return err
			}
			blocks[n] = slices.Clone(before)
		}
		if err := m.mendGroup(n, blocks[n], directories[n]); err != nil {
			return fmt.Errorf("group %d: %w", n, err)
		}
	}
	return nil
}

// owned returns the block bitmaps of the groups in which inodes gained or lost blocks: the
// old bitmaps, with these changes made.
func (m *mender) owned() (map[uint32]bits, error) {
	out := make(map[uint32]bits)
	if err := m.gather(); err != nil {
		return nil, err
	}
	if err := merge(&m.oldRuns); err != nil {
		return nil, fmt.Errorf("as it was: %w", err)
	}
	if err := merge(&m.newRuns); err != nil {
		return nil, err
	}
	for r, change := range differences(m.oldRuns, m.newRuns) {
		if change == kept {
			continue
		}
		for p := range byGroup(&m.super, r) {
			if out[p.group] == nil {
				before, err := m.checker.old.blockMap(p.group)
				if err != nil {
					return nil, err
				}
				out[p.group] = slices.Clone(before)
				m.groups[p.group] = struct{}{}
			}
			if !out[p.group].all(p.from, p.to, change == given) {
				return nil, fmt.Errorf("blocks %d to %d are %s, but some of them already were in the old bitmap", p.run.from, p.run.to-1, change)
			}
			for n := p.from; n < p.to; n++ {
				out[p.group][n/8] ^= 1 << (n % 8)
			}
		}
	}
	return out, nil
}

// mendGroup gives a group the block bitmap want, and the counts that go with it.
func (m *mender) mendGroup(n uint32, want bits, directories int) error {
	old, err := m.checker.old.group(n)
	if err != nil {
		return err
	}
	g, err := m.new.group(n)
	if err != nil {
		return err
	}
	has, err := m.new.blockMap(n)
	if err != nil {
		return err
	}
	inodes, err := m.new.inodeMap(n)
	if err != nil {
		return err
	}
	is := *g
	_, size := groupClusters(&m.super, n)
	if !bytes.Equal(has, want) {
		m.release(n, has, want)
		b, err := m.edit(g.BlockBitmap)
		if err != nil {
			return err
		}
		copy(b, want)
		is.Flags &^= ext4.GroupBlockUninit
		is.BlockBitmapCsum = m.super.BitmapChecksum(want)
	}
	perGroup := uint64(m.super.InodesPerGroup)
	is.FreeClusters = uint32(size - want.count(size))
	is.FreeInodes = uint32(perGroup - inodes.count(perGroup))
	is.Directories = uint32(int(old.Directories) + directories)
	if m.new.protected() && g.Flags&ext4.GroupInodeUninit == 0 {
		is.UnusedInodes = uint32(min(uint64(g.UnusedInodes), perGroup-inodes.end(perGroup)))
	}
	if is == *g {
		return nil
	}
	m.tell("group %d: %d free blocks instead of %d, %d inodes instead of %d", n, is.FreeClusters, g.FreeClusters, is.FreeInodes, g.FreeInodes)
	return m.setGroup(&is)
}

// release records the blocks that are no longer in use.
func (m *mender) release(n uint32, has, want bits) {
	start, size := groupBlocks(&m.super, n)
	each := ratio(&m.super)
	for at := range size {
		if has.has(at/each) && !want.has(at/each) {
			m.out.Released = append(m.out.Released, start+addr.Block(at))
		}
	}
}

// end returns the number after the last set bit before end; 0 if no bit is set.
func (b bits) end(end uint64) uint64 {
	for n := (end + 63) / 64 * 64; n > 0; n -= 64 {
		w := b.word(n - 64)
		if over := n - min(n, end); over > 0 {
			w &= 1<<(64-over) - 1
		}
		if w != 0 {
			return n - uint64(mathbits.LeadingZeros64(w))
		}
	}
	return 0
}
