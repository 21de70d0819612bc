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
