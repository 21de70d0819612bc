package audit_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
)

// TestPlausible damages a transaction in which each inode of a small file system is written
// again. Damage that operations in flight may leave is accepted with enough open handles only.
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
		{"the UUID of a journal elsewhere", of(audit.KindSuper, 0, func(b []byte, _ *ext4.Super) { b[0xd8] ^= 0x80 }), never, never},
		{"another size of inodes", of(audit.KindSuper, 0, func(b []byte, _ *ext4.Super) { b[0x59] ^= 2 }), never, never},
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

// narrow makes a file system like the small ones, but with inodes of only 128 bytes.
func narrow(t *testing.T) []byte {
	t.Helper()
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skipf("%v; run scripts/setup.sh", err)
	}
	from, path := t.TempDir(), filepath.Join(t.TempDir(), "image")
	for n := range 8 {
		if err := os.WriteFile(filepath.Join(from, fmt.Sprint(n)), bytes.Repeat([]byte{'a' + byte(n)}, 2000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-b", "1024", "-I", "128", "-N", "128", "-O", "^resize_inode,^flex_bg,^has_journal", "-d", from, path, "512").CombinedOutput()
	if err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// TestMoves: two inodes may have the same generation by chance. But no inode may become what another one was.
func TestMoves(t *testing.T) {
	for _, name := range smalls {
		t.Run(name, func(t *testing.T) { moves(t, small(t, name), 32, false) })
	}
	for _, empty := range []bool{false, true} {
		t.Run(fmt.Sprintf("i_extra_isize 4, empty %v", empty), func(t *testing.T) { moves(t, small(t, smalls[0]), 4, empty) })
		t.Run(fmt.Sprintf("no i_crtime, empty %v", empty), func(t *testing.T) { moves(t, small(t, smalls[0]), 0, empty) })
		t.Run(fmt.Sprintf("128 bytes, empty %v", empty), func(t *testing.T) { moves(t, narrow(t), 0, empty) })
	}
}

// moves is TestMoves with an i_extra_isize of extra, without i_crtime if that is not 32, and with empty files if empty is set.
func moves(t *testing.T, image []byte, extra uint16, empty bool) {
	const one, other, free = 14, 16, 100
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
		if rest := raw[0x80:]; len(rest) > 0 {
			clear(rest)
			binary.LittleEndian.PutUint16(rest, max(extra, 4))
			if extra == 0 {
				binary.LittleEndian.PutUint16(rest, 32)
			}
		}
		if empty {
			clear(raw[0x04:0x08]) // i_size
			clear(raw[0x1c:0x20]) // i_blocks
			clear(raw[0x28:0x64]) // i_block
		}
		if extra == 32 {
			binary.LittleEndian.PutUint32(raw[0x90:], 1700000000) // i_crtime
			binary.LittleEndian.PutUint32(raw[0x94:], uint32(n)<<2)
		}
		super.SealInode(n, raw)
	}
	renew := func(raw []byte, at int) { // i_crtime, if there is one; else i_block, or i_ctime
		if empty {
			at = 0x0c
		} else if extra < 32 {
			at = 0x28 + 0x14
		}
		raw[at] += 4
	}
	touched := 0x08 // i_atime
	if empty {
		touched = 0x78 // l_i_uid_high
	}
	for what, tc := range map[string]struct {
		do   func(one, other, free []byte)
		good bool
	}{
		"nothing": {func(_, _, _ []byte) {}, true},
		"the generation of one that goes on": {func(_, other, free []byte) {
			copy(free, other)
			renew(free, 0x94)
		}, true},
		"the generation of one that goes": {func(_, other, free []byte) {
			copy(free, other)
			renew(free, 0x90)
			clear(other[0x1a:0x1c]) // i_links_count
		}, true},
		"twice":              {func(_, other, free []byte) { copy(free, other) }, false},
		"over another":       {func(one, other, _ []byte) { copy(one, other) }, false},
		"over another, less": {func(one, other, _ []byte) { copy(one, other); clear(one[0x28:0x64]) }, extra < 32 && !empty},
		"exchanged": {func(one, other, _ []byte) {
			was := bytes.Clone(one)
			copy(one, other)
			copy(other, was)
		}, false},
	} {
		after := bytes.Clone(image)
		for _, n := range []addr.Ino{one, other} {
			slot(after, n)[touched]++
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
			t.Errorf("%s: %v", what, err)
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
