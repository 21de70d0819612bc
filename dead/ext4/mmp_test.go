package ext4_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"understudy.dev/understudy/dead/ext4"
)

// TestMMP: the block that mke2fs makes says that nobody has the file system mounted; e2fsck accepts the
// block that SetMMPClean makes, and a block with a wrong checksum is refused.
func TestMMP(t *testing.T) {
	for _, options := range []string{"mmp", "mmp,^metadata_csum", "^mmp"} {
		path := filepath.Join(t.TempDir(), "disk")
		if out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-O", options, path, "16m").CombinedOutput(); err != nil {
			t.Fatalf("mke2fs: %v: %s", err, out)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fs, err := ext4.Open(f)
		if err != nil {
			t.Fatal(err)
		}
		at, ok, err := fs.Super.MMPLocation()
		if err != nil || ok != (options != "^mmp") {
			t.Fatalf("%s: mmp at block %d: %v, %v", options, at, ok, err)
		}
		if !ok {
			continue
		}
		b, err := fs.Block(at)
		if err != nil {
			t.Fatal(err)
		}
		m, err := fs.Super.ParseMMP(b, true)
		if err != nil || m.Sequence != ext4.MMPClean {
			t.Errorf("%s: a new file system has %+v: %v", options, m, err)
		}
		used := bytes.Clone(b)
		used[4], used[16] = 7, 'n'
		if _, err := fs.Super.SetMMPClean(used); fs.Super.Checksummed() != errors.Is(err, ext4.ErrChecksum) {
			t.Errorf("%s: with a wrong checksum: %v", options, err)
		}
		clean, err := fs.Super.SetMMPClean(b)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(clean, int64(at)*int64(len(clean))); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("e2fsck", "-fp", path).CombinedOutput(); err != nil {
			t.Errorf("%s: e2fsck: %v: %s", options, err, out)
		}
	}
}

func TestMMPWrote(t *testing.T) {
	had := ext4.MMP{Sequence: 8, Time: 100, Node: "left", Device: "vda"}
	for _, tt := range []struct {
		name string
		disk ext4.MMP
		want bool
	}{
		{"the same", had, true},
		{"the one before", ext4.MMP{Sequence: 7, Time: 95, Node: "left", Device: "vda"}, true},
		{"the one before, later", ext4.MMP{Sequence: 7, Time: 101, Node: "left", Device: "vda"}, false},
		{"the same number at another time", ext4.MMP{Sequence: 8, Time: 101, Node: "left", Device: "vda"}, false},
		{"a later one", ext4.MMP{Sequence: 9, Time: 105, Node: "left", Device: "vda"}, false},
		{"an older one", ext4.MMP{Sequence: 6, Time: 90, Node: "left", Device: "vda"}, false},
		{"another machine", ext4.MMP{Sequence: 8, Time: 100, Node: "right", Device: "vda"}, false},
		{"another device", ext4.MMP{Sequence: 8, Time: 100, Node: "left", Device: "vdb"}, false},
		{"a mount that has just begun", ext4.MMP{Sequence: 0x12345678, Time: 100, Node: "left", Device: "vda"}, false},
		{"e2fsck", ext4.MMP{Sequence: ext4.MMPCheck, Time: 100, Node: "left", Device: "vda"}, false},
	} {
		if got := had.Wrote(tt.disk); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	first := ext4.MMP{Sequence: 1, Time: 100}
	if !first.Wrote(ext4.MMP{Sequence: ext4.MMPCheck - 1, Time: 99}) || first.Wrote(ext4.MMP{Sequence: 0, Time: 99}) {
		t.Error("the first number follows the largest")
	}
	checking := ext4.MMP{Sequence: ext4.MMPCheck, Time: 100}
	if checking.Wrote(checking) {
		t.Error("a check is taken for a mount")
	}
}

// FuzzMMP: whatever the bytes, the block that SetMMPClean makes of them says that nobody has the file
// system mounted, and parses again; and Wrote accepts a block of the same machine only, and no later one.
func FuzzMMP(f *testing.F) {
	f.Add(make([]byte, 1024), make([]byte, 1024))
	used := append([]byte{0x50, 0x4d, 0x4d, 0, 7}, make([]byte, 1019)...)
	f.Add(used, used)
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var s ext4.Super
		m, err := s.ParseMMP(a, true)
		if err != nil {
			return
		}
		clean, err := s.SetMMPClean(a)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := s.ParseMMP(clean, true); err != nil || again.Sequence != ext4.MMPClean || again.Node != m.Node {
			t.Errorf("%+v: %v", again, err)
		}
		if other, err := s.ParseMMP(b, true); err == nil && m.Wrote(other) && (m.Node != other.Node || other.Time > m.Time) {
			t.Errorf("%+v wrote %+v", m, other)
		}
	})
}
