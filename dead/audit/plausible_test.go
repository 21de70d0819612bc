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

// TestPlausible damages a transaction in which each inode of a small file system is written
// again. What operations in flight may leave needs as many handles.
func TestPlausible(t *testing.T) {
	const never = 1 << 30 // no number of handles explains it
	type spoil func(kind string, n addr.Ino, b []byte, s *ext4.Super)
	of := func(kind string, first addr.Ino, do func(b []byte, s *ext4.Super)) spoil {
		return func(k string, n addr.Ino, b []byte, s *ext4.Super) {
			if k == kind && n == first {
				do(b, s)
			}
		}
	}
	for _, tc := range []struct {
		name   string
		do     spoil
		needs  int // handles
		unless int // likewise, without checksums
	}{
		{"nothing", of(audit.KindTable, 1, func([]byte, *ext4.Super) {}), 0, 0},
		{"an inode's checksum", of(audit.KindTable, 1, func(b []byte, s *ext4.Super) { b[int(s.InodeSize)+9]++ }), 1, 0},
		{"two inodes' checksums", of(audit.KindTable, 13, func(b []byte, s *ext4.Super) { b[9]++; b[int(s.InodeSize)+9]++ }), 1, 0},
		{"three inodes' checksums", of(audit.KindTable, 13, func(b []byte, s *ext4.Super) {
			for n := range 3 {
				b[n*int(s.InodeSize)+9]++
			}
		}), 2, 0},
		{"an inode without a mode", of(audit.KindTable, 1, func(b []byte, s *ext4.Super) {
			raw := b[s.InodeSize:][:s.InodeSize]
			binary.LittleEndian.PutUint16(raw, 0)
			s.SealInode(2, raw)
		}), never, never},
		{"a table of zeros", of(audit.KindTable, 1, func(b []byte, _ *ext4.Super) { clear(b) }), never, never},
		{"a count of free blocks", of(audit.KindDescriptors, 0, func(b []byte, _ *ext4.Super) { b[0x0c]++ }), 1, 0},
		{"a place of a bitmap", of(audit.KindDescriptors, 0, func(b []byte, _ *ext4.Super) { b[0]++ }), never, never},
		{"a place of a table", of(audit.KindDescriptors, 0, func(b []byte, _ *ext4.Super) { b[8]++ }), never, never},
		{"descriptors of zeros", of(audit.KindDescriptors, 0, func(b []byte, _ *ext4.Super) { clear(b) }), never, never},
		{"a bitmap of blocks", of(audit.KindBlockMap, 0, func(b []byte, _ *ext4.Super) { b[60] ^= 1 }), 1, 0},
		{"a bitmap of inodes", of(audit.KindInodeMap, 0, func(b []byte, _ *ext4.Super) { b[15] ^= 0x80 }), 1, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for at, name := range smalls {
				image := small(t, name)
				changed := busy(t, image)
				super, parts, err := audit.Parts(bytes.NewReader(image), changed)
				if err != nil {
					t.Fatal(err)
				}
				for b, p := range parts {
					tc.do(p.Kind, p.Ino, changed[b], &super)
				}
				needs := tc.needs
				if at == 1 {
					needs = tc.unless
				}
				for _, handles := range []int{0, 1, 2, 8} {
					err := audit.Memory{}.Plausible(bytes.NewReader(image), changed, handles)
					if (err == nil) != (handles >= needs) || err != nil && !errors.Is(err, audit.ErrDamaged) {
						t.Errorf("%s: with %d handles: %v", name, handles, err)
					}
				}
			}
		})
	}
}

// TestWritten: an inode with a wrong checksum that memory has, and that nobody was writing, is damaged.
func TestWritten(t *testing.T) {
	image := small(t, smalls[0])
	changed := busy(t, image)
	super, parts, err := audit.Parts(bytes.NewReader(image), changed)
	if err != nil {
		t.Fatal(err)
	}
	for b, p := range parts {
		if p.Kind == audit.KindTable && p.Ino == 1 {
			changed[b][int(super.InodeSize)+9]++ // of inode 2
		}
	}
	for name, tc := range map[string]struct {
		known []audit.Known
		good  bool
	}{
		"being written":         {[]audit.Known{{Ino: 2, Torn: true}}, true},
		"not in memory":         {[]audit.Known{{Ino: 12}}, true},
		"one of two is written": {[]audit.Known{{Ino: 2}, {Ino: 2, Torn: true}}, true},
		"nobody writes it":      {[]audit.Known{{Ino: 12, Torn: true}, {Ino: 2}}, false},
	} {
		m := audit.Memory{Inodes: func() ([]audit.Known, error) { return tc.known, nil }}
		if err := m.Plausible(bytes.NewReader(image), changed, 1); (err == nil) != tc.good || err != nil && !errors.Is(err, audit.ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestMoves: two inodes may have the same generation by chance. One that is another as it was may not be there.
func TestMoves(t *testing.T) {
	const one, other, free = 14, 16, 100
	for _, name := range smalls {
		image := small(t, name)
		super, _, err := audit.Parts(bytes.NewReader(image), nil)
		if err != nil {
			t.Fatal(err)
		}
		first := addr.Block(binary.LittleEndian.Uint32(image[2*smallBlock+8:]))
		slot := func(b []byte, n addr.Ino) []byte {
			_, block, offset, err := super.InodeLocation(n)
			if err != nil {
				t.Fatal(err)
			}
			return b[(int(first)+int(block))*smallBlock+offset:][:super.InodeSize]
		}
		for _, n := range []addr.Ino{one, other} { // mke2fs gives no generations
			raw := slot(image, n)
			binary.LittleEndian.PutUint32(raw[0x64:], 0xdead0000+uint32(n))
			binary.LittleEndian.PutUint32(raw[0x90:], 1700000000) // i_crtime
			binary.LittleEndian.PutUint32(raw[0x94:], uint32(n)<<2)
			super.SealInode(n, raw)
		}
		for what, tc := range map[string]struct {
			do   func(one, other, free []byte)
			good bool
		}{
			"nothing": {func(_, _, _ []byte) {}, true},
			"the generation of one that goes on": {func(_, other, free []byte) {
				copy(free, other)
				free[0x94] += 4
			}, true},
			"the generation of one that goes": {func(_, other, free []byte) {
				copy(free, other)
				free[0x90]++
				clear(other[0x1a:0x1c]) // i_links_count
			}, true},
			"twice":              {func(_, other, free []byte) { copy(free, other) }, false},
			"over another":       {func(one, other, _ []byte) { copy(one, other) }, false},
			"over another, less": {func(one, other, _ []byte) { copy(one, other); clear(one[0x28:0x64]) }, false},
			"exchanged": {func(one, other, _ []byte) {
				was := bytes.Clone(one)
				copy(one, other)
				copy(other, was)
			}, false},
		} {
			after := bytes.Clone(image)
			for _, n := range []addr.Ino{one, other} {
				slot(after, n)[8]++ // atime
			}
			tc.do(slot(after, one), slot(after, other), slot(after, free))
			for _, n := range []addr.Ino{one, other, free} {
				if raw := slot(after, n); !bytes.Equal(raw, slot(image, n)) {
					super.SealInode(n, raw)
				}
			}
			changed := make(map[addr.Block][]byte)
			for at := range addr.Block(len(image) / smallBlock) {
				if b := after[at*smallBlock:][:smallBlock]; at >= first && !bytes.Equal(b, image[at*smallBlock:][:smallBlock]) {
					changed[at] = b
				}
			}
			err := audit.Memory{}.Plausible(bytes.NewReader(image), changed, 1)
			if (err == nil) != tc.good || err != nil && !errors.Is(err, audit.ErrDamaged) {
				t.Errorf("%s: %s: %v", name, what, err)
			}
		}
	}
}

// TestPlausibleGrown: blocks behind the end are no damage if the superblock says that the file system has grown.
func TestPlausibleGrown(t *testing.T) {
	for _, name := range smalls {
		image := small(t, name)
		changed := busy(t, image)
		super, parts, err := audit.Parts(bytes.NewReader(image), changed)
		if err != nil {
			t.Fatal(err)
		}
		changed[addr.Block(super.Blocks)+5] = make([]byte, smallBlock)
		for _, grown := range []bool{false, true} {
			if grown {
				binary.LittleEndian.PutUint32(changed[1][4:], uint32(super.Blocks)+100) // s_blocks_count
				audit.Seal(super, bytes.NewReader(image), map[addr.Block][]byte{1: changed[1]}, parts)
			}
			if err := (audit.Memory{}).Plausible(bytes.NewReader(image), changed, 0); (err == nil) != grown {
				t.Errorf("%s: grown %v: %v", name, grown, err)
			}
		}
	}
}
