package audit_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/internal/lab/tier"
)

// TestApart gives a file blocks in groups whose bitmaps lie among those of groups far away.
func TestApart(t *testing.T) {
	tier.Programs(t, "mke2fs", "debugfs", "e2fsck")
	dir := t.TempDir()
	image, file := filepath.Join(dir, "image"), filepath.Join(dir, "file")
	if out, err := exec.Command("mke2fs", "-qF", "-t", "ext4", "-b", "1024", "-g", "1024", "-O", "^has_journal", "-E", "packed_meta_blocks=1", image, "32M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	if err := os.WriteFile(file, bytes.Repeat([]byte("20"), 10<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	debugfs(t, image, "write "+file+" file\nsif / mtime @1500000000")
	changed := difference(t, before, image, 1024)
	v, err := audit.Check(bytes.NewReader(before), changed)
	if err != nil || !v.Clean || v.Touched.Groups < 20 {
		t.Errorf("%+v, %v", v, err)
	}
	if found := fsck(t, image); len(found) > 0 {
		t.Errorf("e2fsck found %q", found)
	}
}

// TestDescriptorsKnowBitmaps: Descriptors sets the checksum of a bitmap that was being changed in the descriptor of its group.
func TestDescriptorsKnowBitmaps(t *testing.T) {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		tier.Lacks(t, err)
	}
	path := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command("mke2fs", "-qF", "-t", "ext4", "-b", "1024", "-O", "^has_journal,quota", path, "4M").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fs, err := ext4.Open(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	g, err := fs.Group(0)
	if err != nil {
		t.Fatal(err)
	}
	bitmap := bytes.Clone(image[int(g.BlockBitmap)*1024:][:1024])
	bitmap[400] ^= 1
	got, err := audit.Descriptors(bytes.NewReader(image), map[addr.Block][]byte{g.BlockBitmap: bitmap})
	if err != nil {
		t.Fatal(err)
	}
	home, offset := fs.Super.DescriptorLocation(0)
	if len(got[home]) == 0 {
		t.Fatalf("%d blocks, and not that of the descriptor", len(got))
	}
	is, err := fs.Super.ParseGroup(0, got[home][offset:][:fs.Super.DescSize])
	if err != nil || is.BlockBitmapCsum != fs.Super.BitmapChecksum(bitmap) || is.FreeClusters != g.FreeClusters {
		t.Errorf("%+v, %v", is, err)
	}
}
