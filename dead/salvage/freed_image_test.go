package salvage_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"understudy.dev/understudy/internal/lab/scene"
	"understudy.dev/understudy/internal/lab/tier"
)

// TestFreedInLog checks a file in blocks that the log has old content of. With data=journal, the log
// has the content of a deleted file, and no revoke record for it. The blocks belong to another file by
// now, and were zeroed directly on the disk: a replay by the kernel puts the old content there. With
// bigalloc the same happens to blocks that a file frees and gets back, in a cluster that it kept.
func TestFreedInLog(t *testing.T) {
	tier.Guest(t)
	tier.Programs(t, "mke2fs", "debugfs")
	t.Run("deleted", func(t *testing.T) {
		// So little space is left that the next file gets the blocks of the deleted one.
		freedInLog(t, 10<<20, 0, `
head -c 16777216 /dev/zero | tr '\0' A >/mnt/old 2>/dev/null || true; sync
rm /mnt/old; sync
`)
	})
	t.Run("cut", func(t *testing.T) {
		freedInLog(t, 1<<20, 4096, `
head -c 28672 /dev/zero | tr '\0' A >/mnt/new; sync
truncate -s 4096 /mnt/new; sync
`, "-O", "bigalloc", "-C", "65536")
	})
}

// freedInLog makes a file system, with further options of mke2fs and filler bytes of other content, and runs a
// script. It checks that the file "new" then has kept bytes of A, and zeros behind them.
func freedInLog(t *testing.T, filler, kept int, script string, options ...string) {
	dir := t.TempDir()
	from, path := filepath.Join(dir, "files"), filepath.Join(dir, "disk")
	if err := os.Mkdir(from, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(from, "filler"), bytes.Repeat([]byte{'F'}, filler), 0o644); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"-qF", "-t", "ext4", "-b", "4096", "-J", "size=4", "-m", "0", "-d", from}, options...)
	if out, err := exec.Command("mke2fs", append(args, path, "16M")...).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	s := scene.Play(t, scene.Spec{
		Modules: []string{"ext4"},
		QEMU:    []string{"-drive", "if=none,id=d,format=raw,cache=unsafe,file=" + path, "-device", "virtio-blk-pci,drive=d,serial=d"},
		Script: `
mount -t ext4 -o noinit_itable,data=journal,commit=600 /dev/vda /mnt
` + script + `
fallocate -l 28672 /mnt/new; sync
printf x | dd of=/mnt/new bs=1 seek=12288 conv=notrunc 2>/dev/null
crash
`,
	})
	finishOn(t, cacheOf(t, s.RAM), path)
	got, err := exec.Command("debugfs", "-R", "cat /new", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	want := append(bytes.Repeat([]byte{'A'}, kept), make([]byte, 28672-kept)...)
	want[12288] = 'x'
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes, of which %d are A, instead of %d", len(got), bytes.Count(got, []byte{'A'}), kept)
	}
}
