package audit_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"os"
	"reflect"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
)

// smalls are file systems of 512 blocks of 1 KiB with some of everything: with
// extents and checksums, and without. They were made by
//
//	mke2fs -t ext4 -b 1024 -I 256 -N 128 -O ^resize_inode,^flex_bg,^has_journal -d TREE IMAGE 512
//
// without metadata_csum, 64bit and extent for the second, and given an index,
// attributes, a hard link and a hole by e2fsck -fyD and debugfs. The third has 2048 blocks in
// clusters of four (-O bigalloc -C 4096), and a file of which several extents share a cluster.
var smalls = []string{"testdata/ext4.img.gz", "testdata/plain.img.gz", "testdata/bigalloc.img.gz"}

const smallBlock = 1024

func small(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// busy returns a transaction in which every inode of a small file system is written
// again, with another time, and every other block without a change.
func busy(t testing.TB, image []byte) map[addr.Block][]byte {
	t.Helper()
	changed := make(map[addr.Block][]byte)
	for at := smallBlock; at < len(image); at += smallBlock {
		changed[addr.Block(at/smallBlock)] = slices.Clone(image[at : at+smallBlock])
	}
	table := changed[2] // the block of the descriptors
	const inodes, size = 128, 256
	first := binary.LittleEndian.Uint32(table[8:])
	for n := range addr.Ino(inodes) {
		b := changed[addr.Block(first)+addr.Block(n*size/smallBlock)]
		raw := b[n*size%smallBlock:][:size]
		if (n+1 == 2 || n+1 >= 11) && binary.LittleEndian.Uint16(raw[0x1a:]) > 0 {
			raw[8]++ // atime
		}
	}
	super, parts, err := audit.Parts(bytes.NewReader(image), changed)
	if err != nil {
		t.Fatal(err)
	}
	audit.Seal(super, bytes.NewReader(image), changed, parts)
	return changed
}

func TestSmall(t *testing.T) {
	for _, name := range smalls {
		image := small(t, name)
		for _, changed := range []map[addr.Block][]byte{nil, busy(t, image)} {
			v, err := audit.Check(bytes.NewReader(image), changed)
			if err != nil || !v.Clean {
				t.Errorf("%s: %+v, %v", name, v, err)
			}
			t.Logf("%+v", v.Touched)
		}
	}
}

// TestOrdered: a change of the superblock that tune2fs(8) requested is not understood, but is no damage.
func TestOrdered(t *testing.T) {
	for _, name := range smalls {
		image := small(t, name)
		for field, at := range map[string]int{"s_uuid": 0x68, "s_def_hash_version": 0xfc} {
			changed := busy(t, image)
			super, parts, err := audit.Parts(bytes.NewReader(image), changed)
			if err != nil {
				t.Fatal(err)
			}
			home, offset := super.Location()
			changed[home][offset+at] ^= 1
			audit.Seal(super, bytes.NewReader(image), map[addr.Block][]byte{home: changed[home]}, parts)
			if v, err := audit.Check(bytes.NewReader(image), changed); err != nil || v.Clean || !v.Foreign {
				t.Errorf("%s: %s: %+v, %v", name, field, v, err)
			}
		}
	}
}

// TestTorn checks that the one inode with a wrong checksum is found, and none if there
// are no checksums, or if nothing is torn.
func TestTorn(t *testing.T) {
	for at, name := range smalls {
		image := small(t, name)
		changed := busy(t, image)
		torn := func() []audit.Slot {
			slots, err := audit.Torn(bytes.NewReader(image), changed)
			if err != nil {
				t.Fatal(err)
			}
			return slots
		}
		if slots := torn(); len(slots) > 0 {
			t.Errorf("%s: %v", name, slots)
		}
		super, parts, err := audit.Parts(bytes.NewReader(image), changed)
		if err != nil {
			t.Fatal(err)
		}
		root := audit.Slot{Ino: 2, Offset: int(super.InodeSize)}
		for b, p := range parts {
			if p.Kind == audit.KindTable && p.Ino == 1 {
				root.Block = b
			}
		}
		raw := changed[root.Block][root.Offset:][:super.InodeSize]
		raw[9]++
		want := []audit.Slot{root}
		if at == 1 {
			want = nil
		}
		if slots := torn(); !slices.Equal(slots, want) {
			t.Errorf("%s: %v instead of %v", name, slots, want)
		}
		super.SealInode(root.Ino, raw)
		if slots := torn(); len(slots) > 0 {
			t.Errorf("%s: after it was sealed: %v", name, slots)
		}
	}
}

// TestTruncating checks that only orphans with a name are found.
func TestTruncating(t *testing.T) {
	for _, name := range smalls {
		for _, links := range []byte{1, 0} {
			image := small(t, name)
			changed := busy(t, image)
			super, parts, err := audit.Parts(bytes.NewReader(image), changed)
			if err != nil {
				t.Fatal(err)
			}
			const ino = 12
			group, block, offset, err := super.InodeLocation(ino)
			if err != nil || group != 0 {
				t.Fatal(group, err)
			}
			place, at := super.Location()
			table := addr.Block(binary.LittleEndian.Uint32(changed[place+1][8:]))
			binary.LittleEndian.PutUint32(changed[place][at+0xe8:], ino) // s_last_orphan
			changed[table+addr.Block(block)][offset+0x1a] = links
			audit.Seal(super, bytes.NewReader(image), changed, parts)
			found, err := audit.Truncating(bytes.NewReader(image), changed)
			if err != nil || len(found) != int(links) || links > 0 && found[0].Number != ino {
				t.Errorf("%s: with %d links: %v, %v", name, links, found, err)
			}
		}
	}
}

// TestTree checks the mapping of a file with a hole, before and after it loses a
// block, and that a mapping that contradicts itself is an error.
func TestTree(t *testing.T) {
	const ino = 16
	run := func(logical uint32, physical addr.Block, n uint32) ext4.Run {
		return ext4.Run{Logical: logical, Physical: physical, Length: n}
	}
	for _, tc := range []struct {
		name      string
		cut, want []ext4.Run
		node      addr.Block // the block that maps a part of the file, if not 0
		at        int        // offset in the inode, or in node, of what maps its last blocks
		less, bad []byte
		blocks    uint64 // including that of its attributes
	}{
		{
			name: smalls[0], want: []ext4.Run{run(0, 82, 2), run(4, 86, 11)}, cut: []ext4.Run{run(0, 82, 2), run(4, 86, 10)},
			at: 0x28 + 12 + 12 + 4, less: []byte{10}, bad: []byte{0, 0x90}, // ee_len
			blocks: 14,
		},
		{
			name: smalls[1], want: []ext4.Run{run(0, 84, 2), run(4, 88, 8), run(12, 97, 3)}, cut: []ext4.Run{run(0, 84, 2), run(4, 88, 8), run(12, 97, 2)},
			node: 96, at: 2 * 4, less: []byte{0}, bad: []byte{0, 0, 1}, blocks: 15,
		},
	} {
		image := small(t, tc.name)
		super, _, err := audit.Parts(bytes.NewReader(image), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, at, offset, err := super.InodeLocation(ino)
		if err != nil {
			t.Fatal(err)
		}
		block := addr.Block(binary.LittleEndian.Uint32(image[2*smallBlock+8:])) + addr.Block(at)
		if tc.node != 0 {
			block, offset = tc.node, 0
		}
		check := func(name string, changed map[addr.Block][]byte, want audit.Trees) {
			want.Blocks, want.Indirect = tc.blocks, tc.node != 0
			if name == "cut" {
				want.Blocks--
			}
			got, err := audit.Tree(bytes.NewReader(image), changed, ino)
			if got != nil && len(got.Torn) == 0 {
				got.Torn = nil
			}
			if err != nil || !reflect.DeepEqual(*got, want) {
				t.Errorf("%s, %s: %+v instead of %+v, %v", tc.name, name, got, want, err)
			}
		}
		edited := func(value []byte) map[addr.Block][]byte {
			changed := busy(t, image)
			copy(changed[block][offset+tc.at:], value)
			if tc.node == 0 {
				super.SealInode(ino, changed[block][offset:][:super.InodeSize])
			}
			return changed
		}
		check("as it was", nil, audit.Trees{Old: tc.want, New: tc.want})
		check("written again", busy(t, image), audit.Trees{Old: tc.want, New: tc.want, Touched: tc.node != 0})
		check("cut", edited(tc.less), audit.Trees{Old: tc.want, New: tc.cut, Touched: true})
		if got, err := audit.Tree(bytes.NewReader(image), edited(tc.bad), ino); err == nil {
			t.Errorf("%s: lies at %+v", tc.name, got)
		}
		if got, err := audit.Tree(bytes.NewReader(image), nil, 100); err == nil {
			t.Errorf("%s: a free inode lies at %+v", tc.name, got)
		}
	}
}

// FuzzCheck edits a small file system in its old and new state. Whatever the edits, the
// audit ends, and a verdict that is not clean has reasons.
func FuzzCheck(f *testing.F) {
	f.Add(false, []byte{})
	f.Add(true, []byte{1, 0, 20, 0, 0, 1})
	var images [][]byte
	var changes []map[addr.Block][]byte
	for _, name := range smalls {
		image := small(f, name)
		images, changes = append(images, image), append(changes, busy(f, image))
	}
	f.Fuzz(func(t *testing.T, plain bool, edits []byte) {
		at := 0
		if plain {
			at = 1
		}
		image := slices.Clone(images[at])
		changed := make(map[addr.Block][]byte)
		for b, data := range changes[at] {
			changed[b] = slices.Clone(data)
		}
		for ; len(edits) >= 6; edits = edits[6:] {
			b := addr.Block(1 + int(edits[0]&1)<<8 + int(edits[1]))
			off := int(edits[2])<<2 | int(edits[3])&3
			value := edits[4]
			if edits[0]&2 != 0 {
				image[int(b)*smallBlock%len(image)+off] = value
			} else if data := changed[b]; data != nil {
				data[off] = value
			}
		}
		if super, parts, err := audit.Parts(bytes.NewReader(image), changed); err == nil {
			audit.Seal(super, bytes.NewReader(image), changed, parts)
		}
		if _, err := audit.Torn(bytes.NewReader(image), changed); err != nil {
			t.Log(err)
		}
		if _, err := audit.Truncating(bytes.NewReader(image), changed); err != nil {
			t.Log(err)
		}
		if _, err := audit.Unlist(bytes.NewReader(image), changed, []addr.Ino{12, 14, 16}); err != nil {
			t.Log(err)
		}
		if _, err := audit.Mend(bytes.NewReader(image), changed, 3); err != nil {
			t.Log(err)
		}
		for ino := range addr.Ino(20) {
			if _, err := audit.Tree(bytes.NewReader(image), changed, ino); err != nil {
				t.Log(err)
			}
		}
		v, err := audit.Check(bytes.NewReader(image), changed)
		if err == nil && v.Clean != (len(v.Reasons) == 0) {
			t.Errorf("%+v", v)
		}
	})
}
