package pagecache

import (
	"encoding/binary"
	"testing"

	"understudy.dev/understudy/dead/addr"
)

// leafOf makes a leaf with the inode items of given inodes, and with an item of another kind between them.
func leafOf(inodes ...addr.Ino) []byte {
	b := make([]byte, 4<<10)
	binary.LittleEndian.PutUint64(b[48:], 1<<20)
	binary.LittleEndian.PutUint64(b[80:], 7)
	end, count := len(b)-btrfsHeaderSize, 0
	add := func(ino addr.Ino, kind byte, size int) {
		end -= size
		item := b[btrfsHeaderSize+count*btrfsItemSize:]
		binary.LittleEndian.PutUint64(item, uint64(ino))
		item[8] = kind
		binary.LittleEndian.PutUint32(item[17:], uint32(end))
		binary.LittleEndian.PutUint32(item[21:], uint32(size))
		count++
	}
	for n, ino := range inodes {
		add(ino, btrfsInodeItemKey, btrfsInodeItemSize)
		binary.LittleEndian.PutUint64(b[btrfsHeaderSize+end+8:], 7)
		binary.LittleEndian.PutUint32(b[btrfsHeaderSize+end+40:], uint32(n))
		add(ino, 12, 11) // BTRFS_INODE_REF_KEY
	}
	binary.LittleEndian.PutUint32(b[96:], uint32(count))
	return b
}

func TestParseBtrfsBlock(t *testing.T) {
	leaf := leafOf(257, 258, 300)
	block, err := parseBtrfsBlock(leaf)
	if err != nil {
		t.Fatal(err)
	}
	if block.at != 1<<20 || block.generation != 7 || len(block.inodes) != 3 {
		t.Errorf("read %+v", block)
	}
	for n, ino := range []addr.Ino{257, 258, 300} {
		if item, ok := block.inodes[ino]; !ok || item.trans() != 7 || item.links() != uint32(n) {
			t.Errorf("inode %d: %v", ino, item)
		}
	}
	changed := func(off int, value uint32) []byte {
		b := append([]byte(nil), leaf...)
		binary.LittleEndian.PutUint32(b[off:], value)
		return b
	}
	for name, b := range map[string][]byte{
		"short":                nil,
		"too many items":       changed(96, 160),
		"no such level":        changed(100, btrfsMaxLevel),
		"item behind the end":  changed(btrfsHeaderSize+17, uint32(len(leaf)-btrfsHeaderSize-btrfsInodeItemSize+1)),
		"item far behind it":   changed(btrfsHeaderSize+17, 1<<32-1),
		"item of another size": changed(btrfsHeaderSize+21, btrfsInodeItemSize-1),
	} {
		if _, err := parseBtrfsBlock(b); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// FuzzBtrfsBlock: whatever a tree block holds, what is read of it lies within it.
func FuzzBtrfsBlock(f *testing.F) {
	leaf := leafOf(257, 258)
	f.Add(leaf)
	f.Add(extentLeaf(258, map[uint64][]byte{0: inlineOf("content"), 65536: btrfsExtentOf(btrfsRegular, 1<<20, 0, 4096)}))
	leaf[100] = 1
	f.Add(leaf)
	f.Fuzz(func(t *testing.T, b []byte) {
		block, err := parseBtrfsBlock(b)
		if err != nil {
			return
		}
		w := &btrfsMap{ino: 258}
		if block.level == 0 && w.leaf(block.at, b) == nil && len(w.inline)+len(w.out)*btrfsItemSize > len(b) {
			t.Errorf("%d extents, and %d bytes in the block itself, of %d", len(w.out), len(w.inline), len(b))
		}
		if held := len(block.children)*btrfsChildSize + len(block.inodes)*btrfsItemSize; held > len(b) || len(block.children) > 0 && block.level == 0 {
			t.Errorf("%d children and %d inodes at level %d, in %d bytes", len(block.children), len(block.inodes), block.level, len(b))
		}
	})
}

// nodeOf makes a block above the leaves with pointers to blocks, by the inode number that each begins with.
func nodeOf(inodes ...uint64) []byte {
	b := make([]byte, 4<<10)
	b[100] = 1
	binary.LittleEndian.PutUint32(b[96:], uint32(len(inodes)))
	for n, ino := range inodes {
		at := btrfsHeaderSize + n*btrfsChildSize
		binary.LittleEndian.PutUint64(b[at:], ino)
		binary.LittleEndian.PutUint64(b[at+17:], ino<<20)
		binary.LittleEndian.PutUint64(b[at+25:], 7)
	}
	return b
}

// TestBtrfsSettled: a block that was locked is whole, unless a step of a change of its pointers is seen in it.
func TestBtrfsSettled(t *testing.T) {
	var full []uint64
	for n := range uint64((4<<10 - btrfsHeaderSize) / btrfsChildSize) {
		full = append(full, 256+n)
	}
	fewer := func(b []byte, n byte) []byte { b[96] -= n; return b }
	for name, tc := range map[string]struct {
		b    []byte
		want bool
	}{
		"whole":                             {nodeOf(256, 300, 400), true},
		"one":                               {nodeOf(256), true},
		"full":                              {nodeOf(full...), true},
		"empty":                             {nodeOf(), false},
		"a leaf":                            {leafOf(257), false},
		"room is made":                      {nodeOf(256, 300, 300, 400), false},
		"one is added":                      {fewer(nodeOf(256, 280, 300, 400), 1), false},
		"one was taken out, and not others": {nodeOf(256, 400, 400), false},
		"one was taken out":                 {fewer(nodeOf(256, 400, 400), 1), true},
		"half of it was moved":              {fewer(nodeOf(256, 300, 400, 500), 2), false},
		"not in order":                      {nodeOf(300, 256), false},
	} {
		block, err := parseBtrfsBlock(tc.b)
		if err != nil {
			t.Fatal(name, err)
		}
		if got := block.settled(); got != tc.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	above, err := parseBtrfsBlock(nodeOf(257, 300))
	if err != nil {
		t.Fatal(err)
	}
	for ino, want := range map[addr.Ino]bool{257: true, 258: false} {
		leaf, err := parseBtrfsBlock(leafOf(ino))
		if err != nil {
			t.Fatal(err)
		}
		above.locked = true
		above.children[0].key = btrfsKey{257, btrfsInodeItemKey, 0}
		if err := above.isAbove(above.children[0], leaf); (err == nil) != want {
			t.Errorf("a leaf that begins with inode %d: %v", ino, err)
		}
		if above.locked = false; above.isAbove(above.children[0], leaf) != nil {
			t.Errorf("a leaf that begins with inode %d, below a block that was not locked, is refused", ino)
		}
	}
}
