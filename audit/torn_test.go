package audit_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"

	"understudy/addr"
	"understudy/audit"
	"understudy/ext4"
)

// TestTornTree wants a node that was being written to count, if it is in order, and to
// get the checksum that it has; one that was not changed, or is in no order, not.
func TestTornTree(t *testing.T) {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skipf("%v; run scripts/setup.sh", err)
	}
	dir := t.TempDir()
	from, path := filepath.Join(dir, "from"), filepath.Join(dir, "image")
	if err := os.Mkdir(from, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(from, "f"))
	if err != nil {
		t.Fatal(err)
	}
	const block, extents = 4096, 6 // more than the inode has room for
	for i := range int64(extents) {
		if _, err := f.WriteAt(bytes.Repeat([]byte{1}, block), 3*i*block); err != nil {
			t.Fatal(err)
		}
	}
	f.Close()
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-d", from, path, "16M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const ino = 12
	fs, err := ext4.Open(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	i, err := fs.Inode(ino)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := audit.Tree(bytes.NewReader(image), nil, ino)
	if err != nil || len(whole.New) != extents || len(whole.Torn) > 0 {
		t.Fatalf("%+v, %v", whole, err)
	}
	leaf := addr.Block(i.Block[16]) | addr.Block(i.Block[17])<<8 // ei_leaf_lo of the first entry
	good := image[int(leaf)*block:][:block]

	bad := bytes.Clone(good)
	bad[12*(extents+1)] ^= 1 // behind the entries, and summed
	got, err := audit.Tree(bytes.NewReader(image), map[addr.Block][]byte{leaf: bad}, ino)
	if err != nil || !got.Touched || !reflect.DeepEqual(got.New, whole.New) || len(got.Torn) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	if err := fs.Super.CheckExtentBlock(i, got.Torn[leaf]); err != nil {
		t.Error(err)
	}
	short := bytes.Clone(good)
	short[2]-- // eh_entries
	if got, err := audit.Tree(bytes.NewReader(image), map[addr.Block][]byte{leaf: short}, ino); err != nil || len(got.New) != extents-1 || len(got.Old) != extents {
		t.Errorf("%+v, %v", got, err)
	}
	double := bytes.Clone(good)
	copy(double[24:], good[12:24]) // the first entry twice
	if got, err := audit.Tree(bytes.NewReader(image), map[addr.Block][]byte{leaf: double}, ino); err == nil {
		t.Errorf("out of order: %+v", got)
	}
	copy(good, bad)
	if got, err := audit.Tree(bytes.NewReader(image), nil, ino); err == nil {
		t.Errorf("not changed: %+v", got)
	}
}
