package salvage_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/lab/scene"
	"understudy.dev/understudy/internal/lab/tier"
)

// brokenDisk makes an ext4 with two files of 1 MiB, "lost" and "good". It returns its path, and the
// options of QEMU for a drive on which each write to one block fails. The debugfs command blockOf
// prints the number of that block.
func brokenDisk(t *testing.T, blockOf string, options ...string) (path string, drive []string) {
	t.Helper()
	tier.Programs(t, "mke2fs", "debugfs")
	dir := t.TempDir()
	from, path := filepath.Join(dir, "files"), filepath.Join(dir, "disk")
	old := bytes.Repeat([]byte{'A'}, 1<<20)
	for _, err := range []error{
		os.Mkdir(from, 0o755), os.WriteFile(filepath.Join(from, "lost"), old, 0o644), os.WriteFile(filepath.Join(from, "good"), old, 0o644),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("mke2fs", append(options, "-qF", "-t", "ext4", "-b", "4096", "-d", from, path, "256M")...).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	out, err := exec.Command("debugfs", "-R", blockOf, path).Output()
	var block int
	if _, scanned := fmt.Sscan(string(out), &block); err != nil || scanned != nil || block == 0 {
		t.Fatalf("debugfs: %v, %v: %q", err, scanned, out)
	}
	// QEMU's docs/devel/blkdebug.txt. With "report" the guest sees the error.
	broken := []string{
		"if=none", "id=broken", "format=raw", "cache=unsafe", "werror=report", "file.driver=blkdebug",
		"file.image.driver=file", "file.image.filename=" + path,
		"file.inject-error.0.event=none", "file.inject-error.0.iotype=write", "file.inject-error.0.errno=5",
		"file.inject-error.0.once=off", fmt.Sprintf("file.inject-error.0.sector=%d", block*8),
	}
	return path, []string{"-drive", strings.Join(broken, ","), "-device", "virtio-blk-pci,drive=broken,serial=broken"}
}

// TestWriteFailed makes a disk refuse to write a part of a file, long before the kernel dies:
// the new content is in memory only, in pages that are clean.
func TestWriteFailed(t *testing.T) {
	tier.Guest(t)
	path, drive := brokenDisk(t, "bmap lost 10")
	s := scene.Play(t, scene.Spec{
		Modules: []string{"ext4"},
		QEMU:    drive,
		Script: `
mount -t ext4 -o noinit_itable /dev/vda /mnt
head -c 1048576 /dev/zero | tr '\0' B >/new
for file in lost good; do
	dd if=/new of=/mnt/$file bs=64k conv=notrunc 2>/dev/null
	sync # each by itself: they are neighbours on the disk, and one request with both would fail for both
done
sleep 1; sync
crash
`,
	})
	c := cacheOf(t, s.RAM)
	p, super, _ := planFor(t, c, path)
	if len(p.Refused)+len(p.Faults) > 0 {
		t.Errorf("refused %v, faults %v", p.Refused, p.Faults)
	}
	n := slices.IndexFunc(p.Files, func(f salvage.File) bool { return f.Path == "lost" })
	if n < 0 || slices.ContainsFunc(p.Files, func(f salvage.File) bool { return f.Path == "good" }) {
		t.Fatalf("planned %v: the one of which no write failed is on the disk", pathsOf(p))
	}
	if got := read(t, p, &p.Files[n]); !bytes.Equal(got, bytes.Repeat([]byte{'B'}, 1<<20)) {
		t.Errorf("%d bytes of it are planned, from %q on", len(got), got[:min(8, len(got))])
	}
	if i := inodeOf(t, c, super, &p.Files[n]); !i.Failed {
		t.Error("the kernel does not know of the failure")
	}
}

// TestMetadataWriteFailed makes a disk refuse a block of a directory of a file system without a
// journal: the buffer is clean from then on, and its names are in memory only.
func TestMetadataWriteFailed(t *testing.T) {
	tier.Guest(t)
	path, drive := brokenDisk(t, "bmap / 0", "-O", "^has_journal")
	s := scene.Play(t, scene.Spec{
		Modules: []string{"ext4"},
		QEMU:    drive,
		Script: `
mount -t ext4 -o noinit_itable /dev/vda /mnt
echo content >/mnt/new
sync; sleep 1; sync || true
crash
`,
	})
	named := func() bool {
		out, err := exec.Command("debugfs", "-R", "stat /new", path).Output()
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(out, []byte("Type: regular"))
	}
	if named() {
		t.Fatal("the disk took the block")
	}
	finishOn(t, cacheOf(t, s.RAM), path)
	if !named() {
		t.Error("the name was taken for saved")
	}
}

// finishOn carries out the last commit of the file system on a disk.
func finishOn(t *testing.T, c *pagecache.Cache, path string) {
	t.Helper()
	_, super, _ := planFor(t, c, path)
	disk, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	r, err := journal.Plan(c, super, disk)
	if err != nil {
		t.Fatal(err)
	}
	if r.Lost != nil {
		t.Errorf("lost: %v", r.Lost)
	}
	if _, err := r.Finish(disk); err != nil {
		t.Fatal(err)
	}
}

func pathsOf(p *salvage.Plan) (paths []string) {
	for _, f := range p.Files {
		paths = append(paths, f.Path)
	}
	return paths
}

// read returns the bytes that are planned for a file.
func read(t *testing.T, p *salvage.Plan, f *salvage.File) (out []byte) {
	t.Helper()
	all := make([]byte, p.StagingSize())
	if err := p.Gather(all); err != nil {
		t.Fatal(err)
	}
	for _, r := range f.Runs {
		out = append(out, all[r.Staged:r.Staged+r.Len()]...)
	}
	return out
}

func inodeOf(t *testing.T, c *pagecache.Cache, s *pagecache.Superblock, f *salvage.File) *pagecache.Inode {
	t.Helper()
	for i, err := range c.Inodes(s) {
		if err == nil && i.Ino == f.Ino {
			return i
		}
	}
	t.Fatalf("no inode %d", f.Ino)
	return nil
}
