package audit_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
)

// slot is an inode of a transaction in which each inode of a small file system is written again.
type slot struct {
	changed map[addr.Block][]byte
	raw     []byte // of the inode, in its block
	image   []byte
}

// slotOf returns the first inode that want accepts.
func slotOf(t *testing.T, name string, want func(n addr.Ino, raw []byte) bool) (slot, addr.Ino) {
	t.Helper()
	image := small(t, name)
	changed := busy(t, image)
	fs, err := ext4.Open(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	for n := addr.Ino(1); n <= addr.Ino(fs.Super.Inodes); n++ {
		group, block, offset, err := fs.Super.InodeLocation(n)
		if err != nil {
			t.Fatal(err)
		}
		g, err := fs.Group(group)
		if err != nil {
			t.Fatal(err)
		}
		raw := changed[g.InodeTable+addr.Block(block)][offset:][:fs.Super.InodeSize]
		if want(n, raw) {
			return slot{changed, raw, image}, n
		}
	}
	t.Fatalf("%s has no such inode", name)
	return slot{}, 0
}

// file accepts a regular file that has a direct pointer in i_block, or an extent.
func file(_ addr.Ino, raw []byte) bool {
	return binary.LittleEndian.Uint16(raw)&0xf000 == 0x8000 && binary.LittleEndian.Uint16(raw[0x1a:]) > 0 && binary.LittleEndian.Uint32(raw[0x28:]) != 0
}

// TestRemembered: where inodes have no checksum, an inode that nothing was changing must be in its block what it is in
// memory; its size there may be behind while an operation ends.
func TestRemembered(t *testing.T) {
	for name, tc := range map[string]struct {
		image   string
		root    byte // added to the first byte of the map in memory
		size    int64
		unknown bool
		handles int
		good    bool
	}{
		"the same":                   {image: smalls[1], good: true},
		"another map":                {image: smalls[1], root: 1, handles: 8},
		"another map, not in memory": {image: smalls[1], root: 1, unknown: true, good: true},
		"another map, with checksum": {image: smalls[0], root: 1, good: true},
		"longer in memory":           {image: smalls[1], size: 1},
		"longer, and a handle":       {image: smalls[1], size: 1, handles: 1, good: true},
		"shorter in memory":          {image: smalls[1], size: -1, handles: 8},
	} {
		s, n := slotOf(t, tc.image, file)
		root := bytes.Clone(s.raw[0x28:0x64])
		root[0] += tc.root
		size := int64(binary.LittleEndian.Uint32(s.raw[4:])) + tc.size
		m := audit.Memory{Inode: func(i addr.Ino) ([]byte, int64, bool) { return root, size, i == n && !tc.unknown }}
		if err := m.Plausible(bytes.NewReader(s.image), s.changed, tc.handles); (err == nil) != tc.good || err != nil && !errors.Is(err, audit.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestUnused: an inode that no kernel uses must not change.
func TestUnused(t *testing.T) {
	for _, name := range smalls {
		for _, n := range []addr.Ino{1, 6, 9, 10} {
			s, _ := slotOf(t, name, func(i addr.Ino, _ []byte) bool { return i == n })
			s.raw[0x1d]++ // i_blocks
			if err := (audit.Memory{}).Plausible(bytes.NewReader(s.image), s.changed, 8); !errors.Is(err, audit.ErrDamaged) {
				t.Errorf("%s: inode %d: %v", name, n, err)
			}
		}
	}
}

// TestExchanged: a file that takes a block which was in use is damaged, unless an operation on it was in flight.
func TestExchanged(t *testing.T) {
	for name, tc := range map[string]struct {
		known   []audit.Known
		damaged bool
	}{
		"nobody changes it": {[]audit.Known{{}}, true},
		"not in memory":     {[]audit.Known{}, true},
		"somebody does":     {[]audit.Known{{Busy: true}}, false},
		"nobody knows":      {nil, false},
	} {
		s, n := slotOf(t, smalls[1], file)
		binary.LittleEndian.PutUint32(s.raw[0x28+4*11:], 3) // a bitmap, as the last of its direct blocks
		m := audit.Memory{Inodes: func() ([]audit.Known, error) {
			for i := range tc.known {
				tc.known[i].Ino = n
			}
			return tc.known, nil
		}}
		if tc.known == nil {
			m.Inodes = nil
		}
		v, err := m.Check(bytes.NewReader(s.image), s.changed)
		if err != nil || v.Clean || (v.Damaged != "") != tc.damaged {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
}
