package audit

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/addr"
)

// inUse reports whether a raw inode is in use: it has links, or is an orphan.
func inUse(raw []byte, n addr.Ino, orphans map[addr.Ino]source) bool {
	_, orphan := orphans[n]
	return orphan || binary.LittleEndian.Uint16(raw[0x1a:]) > 0
}

// mendInodeMaps makes the inode bitmaps agree with the inodes that were changed. Inodes that
// have no links and are no orphans are free.
func (m *mender) mendInodeMaps() error {
	orphans, err := m.new.orphans(&unclaimed{})
	if err != nil {
		return fmt.Errorf("orphans: %w", err)
	}
	slots := make(map[addr.Ino]bool)
	for s := range m.changedSlots() {
		slots[s.Ino] = true
	}
	maps, err := m.changedBits(slots)
	if err != nil {
		return err
	}
	for _, n := range sorted(slots) {
		group, at := uint32((n-1)/addr.Ino(m.super.InodesPerGroup)), uint64(n-1)%uint64(m.super.InodesPerGroup)
		raw, allocated, err := m.new.inode(n)
		if err != nil {
			return err
		}
		switch used := inUse(raw, n, orphans); {
		case n < m.super.FirstInode || used == allocated:
			continue
		case used:
			return fmt.Errorf("inode %d has links, and is free", n)
		}
		if err := m.mendBit(n, slots[n]); err != nil {
			return err
		}
		maps[group][at/8] &^= 1 << (at % 8)
	}
	for group, bits := range maps {
		if before, err := m.new.inodeMap(group); err != nil || bytes.Equal(before, bits) {
			if err != nil {
				return err
			}
			continue
		}
		if err := m.setInodeMap(group, bits); err != nil {
			return err
		}
	}
	return nil
}

// changedBits adds the inodes whose bits differ to slots, and returns copies of the inode bitmaps.
func (m *mender) changedBits(slots map[addr.Ino]bool) (map[uint32]bits, error) {
	out := make(map[uint32]bits)
	for n := range slots {
		m.groups[uint32((n-1)/addr.Ino(m.super.InodesPerGroup))] = struct{}{}
	}
	for group := range m.groups {
		before, err := m.checker.old.inodeMap(group)
		if err != nil {
			return nil, err
		}
		after, err := m.new.inodeMap(group)
		if err != nil {
			return nil, err
		}
		out[group] = slices.Clone(after)
		for at := range uint64(m.super.InodesPerGroup) {
			if n := addr.Ino(group)*addr.Ino(m.super.InodesPerGroup) + addr.Ino(at) + 1; before.has(at) != after.has(at) && !slots[n] {
				slots[n] = false
			}
		}
	}
	return out, nil
}

// mendBit handles an inode that is not in use although its bit says that it is. changed says
// that the inode itself was written.
func (m *mender) mendBit(n addr.Ino, changed bool) error {
	if !changed {
		m.tell("inode %d: it was being allocated", n)
		return nil
	}
	m.tell("inode %d: it was being freed", n)
	return m.free(n)
}
