package audit_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
)

// scattered makes a file system with a file of twelve extents, which has a node for them, and returns the file's inode number.
func scattered(t *testing.T, features string) ([]byte, addr.Ino) {
	t.Helper()
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skipf("%v; run scripts/setup.sh", err)
	}
	dir := t.TempDir()
	from, path := filepath.Join(dir, "from"), filepath.Join(dir, "image")
	if err := os.Mkdir(from, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(from, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for n := range int64(12) {
		if _, err := f.WriteAt(bytes.Repeat([]byte{'x'}, 4096), n*4*4096); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", features, "-d", from, path, "16M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return image, 12
}

// TestUnclaimed changes a block of a file, but not its inode: a node, as when data for an unwritten extent has reached the
// disk, which writes the inode again without a change; or content, as of a quota file.
func TestUnclaimed(t *testing.T) {
	for sums, features := range []string{"^metadata_csum", "metadata_csum"} {
		image, n := scattered(t, features)
		fs, err := ext4.Open(bytes.NewReader(image))
		if err != nil {
			t.Fatal(err)
		}
		g, err := fs.Group(0)
		if err != nil {
			t.Fatal(err)
		}
		i, err := fs.Inode(n)
		if err != nil || i.Block[6] != 1 {
			t.Fatalf("a tree of depth %d, %v", i.Block[6], err)
		}
		get := func(b addr.Block) []byte { return bytes.Clone(image[b*4096:][:4096]) }
		at := addr.Block(binary.LittleEndian.Uint32(i.Block[12+4:]))
		node, broken := get(at), get(at)
		node[12+5] ^= 0x80 // unwritten
		broken[12+8]++     // the first block of an extent
		for _, b := range [][]byte{node, broken} {
			if err := fs.Super.SealExtentBlock(i, b); err != nil {
				t.Fatal(err)
			}
		}
		run, err := fs.Map(i, 0)
		if err != nil {
			t.Fatal(err)
		}
		content := bytes.Repeat([]byte{'q'}, 4096)
		home := g.InodeTable + addr.Block(int(n-1)*int(fs.Super.InodeSize)/4096)
		flagged := bytes.Clone(image)
		raw := flagged[int(g.InodeTable)*4096+int(n-1)*int(fs.Super.InodeSize):][:fs.Super.InodeSize]
		binary.LittleEndian.PutUint32(raw[0x20:], uint32(i.Flags)|0x90)
		fs.Super.SealInode(n, raw)

		there, quota := []audit.Known{{Ino: n, Generation: i.Generation}}, []audit.Known{{Ino: 900, Quota: true}, {Ino: n, Generation: i.Generation, Quota: true}}
		many := make(map[addr.Block][]byte)
		for at := range 12 {
			run, err := fs.Map(i, uint32(at*4))
			if err != nil {
				t.Fatal(err)
			}
			many[run.Physical] = content
		}
		type blocks = map[addr.Block][]byte
		for _, tc := range []struct {
			name    string
			image   []byte
			changed blocks
			known   []audit.Known
			want    [2]bool // without and with checksums
		}{
			{"a node", image, blocks{at: node}, nil, [2]bool{false, false}},
			{"a node, and its inode in memory", image, blocks{at: node}, there, [2]bool{false, true}},
			{"a node, and its inode as it was", image, blocks{at: node, home: get(home)}, nil, [2]bool{true, true}},
			{"a node that is broken", image, blocks{at: broken, home: get(home)}, there, [2]bool{false, false}},
			{"content, and its inode as it was", image, blocks{run.Physical: content, home: get(home)}, there, [2]bool{false, false}},
			{"content that memory says is quotas", image, blocks{run.Physical: content}, quota, [2]bool{false, false}},
			{"quotas", flagged, blocks{run.Physical: content}, quota, [2]bool{true, true}},
			{"many blocks of quotas", flagged, many, quota, [2]bool{true, true}},
			{"quotas that memory does not know", flagged, blocks{run.Physical: content}, there, [2]bool{false, false}},
		} {
			t.Run(fmt.Sprintf("%s, %s", features, tc.name), func(t *testing.T) {
				m := audit.Memory{Inodes: func() ([]audit.Known, error) { return tc.known, nil }}
				v, err := m.Check(bytes.NewReader(tc.image), tc.changed)
				if err != nil || v.Clean != tc.want[sums] || v.Foreign {
					t.Errorf("clean %v, foreign %v: %q, %v", v.Clean, v.Foreign, v.Reasons, err)
				}
			})
		}
	}
}
