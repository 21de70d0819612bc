package audit_test

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
)

// indexedInode returns the number of a directory with an index, and where its inode is.
func indexedInode(t *testing.T, image []byte) (n addr.Ino, block addr.Block, offset int) {
	t.Helper()
	fs, err := ext4.Open(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	for n := addr.Ino(11); n <= addr.Ino(fs.Super.Inodes); n++ {
		i, err := fs.Inode(n)
		if err != nil || !i.IsDir() || i.Flags&ext4.InodeIndex == 0 {
			continue
		}
		group, at, off, err := fs.Super.InodeLocation(n)
		if err != nil {
			t.Fatal(err)
		}
		g, err := fs.Group(group)
		if err != nil {
			t.Fatal(err)
		}
		return n, g.InodeTable + addr.Block(at), int(off)
	}
	t.Fatal("no directory has an index")
	return 0, 0, 0
}

// TestIndexGone changes directories with an index. Only without the dir_index feature may they lose it.
func TestIndexGone(t *testing.T) {
	const flagsAt, compatAt = 0x20, 1024 + 0x5c
	flip := func(at, bit int) func([]byte) {
		return func(b []byte) {
			binary.LittleEndian.PutUint32(b[at:], binary.LittleEndian.Uint32(b[at:])^uint32(bit))
		}
	}
	nothing := func([]byte) {}
	without := flip(compatAt, int(ext4.CompatDirIndex))
	for name, tc := range map[string]struct {
		image, change func([]byte) // of the image, and of the inode
		want          string       // "": it is clean
	}{
		"a time":                        {nothing, flip(8, 1), ""},
		"index":                         {nothing, flip(flagsAt, int(ext4.InodeIndex)), "loses its htree index"},
		"without dir_index, a time":     {without, flip(8, 1), ""},
		"without dir_index, index":      {without, flip(flagsAt, int(ext4.InodeIndex)), ""},
		"without dir_index, generation": {without, flip(0x64, 1), "lacks the dir_index feature"},
	} {
		image := small(t, "testdata/plain.img.gz") // no checksums
		tc.image(image)
		n, at, off := indexedInode(t, image)
		block := slices.Clone(image[int(at)*smallBlock:][:smallBlock])
		tc.change(block[off:])
		v, err := audit.Check(bytes.NewReader(image), map[addr.Block][]byte{at: block})
		if err != nil || v.Clean != (tc.want == "") || v.Foreign || !strings.Contains(strings.Join(v.Reasons, "; "), tc.want) {
			t.Errorf("%s, directory %d: %+v, %v", name, n, v, err)
		}
	}
}

// TestIndexOverwritten adds a name to a directory as a kernel does without the dir_index feature: where the root of the index was.
func TestIndexOverwritten(t *testing.T) {
	image := small(t, "testdata/plain.img.gz")
	binary.LittleEndian.PutUint32(image[1024+0x5c:], binary.LittleEndian.Uint32(image[1024+0x5c:])&^uint32(ext4.CompatDirIndex))
	n, at, off := indexedInode(t, image)
	fs, err := ext4.Open(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := fs.Inode(n)
	if err != nil {
		t.Fatal(err)
	}
	run, err := fs.Map(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	changed := make(map[addr.Block][]byte)
	edit := func(b addr.Block) []byte {
		if changed[b] == nil {
			changed[b] = slices.Clone(image[int(b)*smallBlock:][:smallBlock])
		}
		return changed[b]
	}
	binary.LittleEndian.PutUint32(edit(at)[off+0x20:], uint32(dir.Flags&^ext4.InodeIndex))
	file := addr.Ino(0)
	for i := addr.Ino(12); i <= addr.Ino(fs.Super.Inodes) && file == 0; i++ {
		if f, err := fs.Inode(i); err == nil && f.IsRegular() && f.Links == 1 {
			file = i
		}
	}
	group, block, offset, err := fs.Super.InodeLocation(file)
	if err != nil {
		t.Fatal(err)
	}
	g, err := fs.Group(group)
	if err != nil {
		t.Fatal(err)
	}
	edit(g.InodeTable + addr.Block(block))[offset+0x1a]++ // its links
	root := edit(run.Physical)
	binary.LittleEndian.PutUint16(root[12+4:], 12) // ".." no longer has all of the block
	clear(root[24:])
	binary.LittleEndian.PutUint32(root[24:], uint32(file))
	binary.LittleEndian.PutUint16(root[24+4:], smallBlock-24)
	root[24+6], root[24+7] = 3, 1
	copy(root[24+8:], "new")
	if v, err := audit.Check(bytes.NewReader(image), changed); err != nil || !v.Clean {
		t.Errorf("%+v, %v", v, err)
	}
}
