package main

import (
	"os/exec"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/scene"
)

// TestApplyLargeBlocks tests ext4 with blocks larger than a page, which only new kernels can mount.
func TestApplyLargeBlocks(t *testing.T) {
	together(t)
	const newest = "newest-cloud"
	b := sceneBench(t, scene.Spec{
		Kernel:  newest,
		Memory:  512 << 20,
		Modules: []string{"ext4"},
		Disks:   []scene.Disk{{Size: 512 << 20, Mkfs: []string{"mkfs.ext4", "-qF", "-b", "65536"}}},
		Script: `
mount -t ext4 -o commit=1000 /dev/vda /mnt
mkdir /mnt/dir
echo one >/mnt/dir/one
sync
echo two >>/mnt/dir/one
mkdir /mnt/dir/new
echo three >/mnt/dir/new/three
mv /mnt/dir/new /mnt/renamed
rm -f /mnt/none
crash
`,
	})
	// The default kernel cannot mount it, and the error says what would help.
	b.args = []string{"--guest", fixture.NeedKernel(t, fixture.Default)}
	out, err := understudy(t, "salvage", "apply", b.image.RAM, "--disk", b.disk.Image, "--guest", b.args[1])
	if err == nil || !strings.Contains(err.Error(), "may be too old for this file system") || !strings.Contains(err.Error(), "bad block size") {
		t.Errorf("%v: %s", err, out)
	}
	b.untouched()
	b.args = []string{"--guest", fixture.NeedKernel(t, newest)}
	r := b.apply()
	if !r.Complete || len(r.Refused) > 0 {
		t.Errorf("%+v", r)
	}
	b.tidy()
	b.has(map[string]string{"/dir/one": "one\ntwo\n", "/renamed/three": "three\n"})
}

// has checks that the disk has files with this content, and that e2fsck finds nothing wrong.
func (b *bench) has(files map[string]string) {
	b.t.Helper()
	for name, want := range files {
		if got := debugfs(b.t, b.disk.Image, "cat "+name); got != want {
			b.t.Errorf("%s: %q", name, got)
		}
	}
	if out, err := exec.Command("e2fsck", "-fn", b.disk.Image).CombinedOutput(); err != nil {
		b.t.Errorf("e2fsck: %v: %s", err, out)
	}
}

// debugfs runs a request of debugfs(8) on a disk.
func debugfs(t *testing.T, disk, request string) string {
	t.Helper()
	out, err := exec.Command("debugfs", "-R", request, disk).Output()
	if err != nil {
		t.Fatalf("debugfs: %v", err)
	}
	return string(out)
}
