package audit_test

import (
	"bytes"
	"errors"
	"maps"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
)

// renamed changes a name of inode 14 in directory 13, but not the directory's inode, as an
// operation in flight does.
func renamed(t *testing.T, image []byte) (map[addr.Block][]byte, map[addr.Block]audit.Part) {
	t.Helper()
	changed := busy(t, image)
	super, parts, err := audit.Parts(bytes.NewReader(image), changed)
	if err != nil {
		t.Fatal(err)
	}
	for at, p := range parts {
		if p.Kind == audit.KindLeaf && p.Ino == 13 {
			leaf := bytes.Clone(changed[at])
			leaf[24+8] ^= 1 // the first byte of its one name
			changed = map[addr.Block][]byte{at: leaf}
			audit.Seal(super, bytes.NewReader(image), changed, parts)
			return changed, parts
		}
	}
	t.Fatal("directory 13 has no block")
	return nil, nil
}

// TestKnown checks that the owner of a changed block is found among the inodes that memory
// has: by the block's checksum, or because the inode was busy.
func TestKnown(t *testing.T) {
	for at, name := range smalls {
		image := small(t, name)
		changed, _ := renamed(t, image)
		generation := uint32(0) // mke2fs gives none
		for _, tc := range []struct {
			what  string
			known []audit.Known
			err   error
			want  [2]bool // with and without checksums
		}{
			{"nothing", nil, nil, [2]bool{false, false}},
			{"another", []audit.Known{{Ino: 12, Generation: generation, Busy: true}}, nil, [2]bool{false, false}},
			{"none", []audit.Known{{Ino: 120, Generation: generation, Busy: true}, {Ino: 1 << 30, Busy: false}}, nil, [2]bool{false, false}},
			{"at rest", []audit.Known{{Ino: 12}, {Ino: 13, Generation: generation}}, nil, [2]bool{true, false}},
			{"busy", []audit.Known{{Ino: 12, Busy: true}, {Ino: 13, Generation: generation, Busy: true}}, nil, [2]bool{true, true}},
			{"another with its number", []audit.Known{{Ino: 13, Generation: generation + 1}}, nil, [2]bool{false, false}},
			{"no list", []audit.Known{{Ino: 13, Generation: generation}}, errors.New("torn"), [2]bool{false, false}},
		} {
			memory := audit.Memory{Inodes: func() ([]audit.Known, error) { return tc.known, tc.err }}
			v, err := memory.Check(bytes.NewReader(image), changed)
			if want := tc.want[at%2]; err != nil || v.Clean != want {
				t.Errorf("%s: %s: clean %v instead of %v: %q, %v", name, tc.what, v.Clean, want, v.Reasons, err)
			}
		}
	}
}

// TestTornSums checks that the superblock and descriptors get their checksums, and nothing else changes.
func TestTornSums(t *testing.T) {
	for at, name := range smalls {
		image := small(t, name)
		whole := busy(t, image)
		if torn, err := audit.Descriptors(bytes.NewReader(image), whole); err != nil || len(torn) > 0 {
			t.Errorf("%s: %d blocks are torn, %v", name, len(torn), err)
		}
		const super, descriptors = 1, 2
		changed := maps.Clone(whole)
		changed[descriptors] = bytes.Clone(whole[descriptors])
		if changed[descriptors][0x1e] ^= 1; at%2 == 0 { // bg_checksum
			torn, err := audit.Descriptors(bytes.NewReader(image), changed)
			if err != nil || len(torn) != 1 || !bytes.Equal(torn[descriptors], whole[descriptors]) {
				t.Errorf("%s: %d blocks are torn, %v", name, len(torn), err)
			}
		}
		changed[descriptors] = whole[descriptors]
		changed[super] = bytes.Clone(whole[super])
		if changed[super][0x2c]++; at%2 == 1 { // s_mtime
			continue // without a checksum nothing is torn
		}
		if v, err := audit.Check(bytes.NewReader(image), changed); err != nil || v.Clean {
			t.Errorf("%s: a superblock with a wrong checksum: %+v, %v", name, v, err)
		}
		if _, m, ok := mended(t, bytes.NewReader(image), changed, 1, audit.Memory{}); !ok || len(m.Blocks) != 1 || m.Blocks[super] == nil {
			t.Errorf("%s: %q", name, m.What)
		}
	}
}

// TestUsers: a block of attributes is restored if only its user count changes, and no inode yet
// begins or ceases to use it. A block that changes in more is not restored.
func TestUsers(t *testing.T) {
	for _, name := range smalls {
		image := small(t, name)
		whole := busy(t, image)
		super, parts, err := audit.Parts(bytes.NewReader(image), whole)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for at, p := range parts {
			if p.Kind != audit.KindAttributes {
				continue
			}
			for off, want := range map[int]bool{4: true, 40: false} { // h_refcount; of an entry
				b := bytes.Clone(whole[at])
				b[off] += 2
				changed := map[addr.Block][]byte{at: b}
				audit.Seal(super, bytes.NewReader(image), changed, parts)
				if v, err := audit.Check(bytes.NewReader(image), changed); err != nil || v.Clean {
					t.Errorf("%s: %d: %+v, %v", name, off, v, err)
				}
				if all, m, ok := mended(t, bytes.NewReader(image), changed, 1, audit.Memory{}); ok != want || ok && !bytes.Equal(all[at], whole[at]) {
					t.Errorf("%s: %d: mended %v instead of %v: %q", name, off, ok, want, m.What)
				}
			}
			found++
		}
		if found == 0 {
			t.Errorf("%s: no attributes", name)
		}
	}
}
