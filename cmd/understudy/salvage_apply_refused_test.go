package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/scene"
)

// sceneBench plays a scene with one disk, for salvage apply.
func sceneBench(t *testing.T, spec scene.Spec) *bench {
	t.Helper()
	s := scene.Play(t, spec)
	b := &bench{t: t, image: &fixture.Image{RAM: s.RAM}}
	b.disk.Image = filepath.Join(t.TempDir(), "disk")
	b.crash.Image = s.Disks[0]
	copyDisk(t, b.crash.Image, b.disk.Image)
	return b
}

// content is a file of the ext family on the disk.
func (b *bench) content(path string) string {
	b.t.Helper()
	out, err := exec.Command("debugfs", "-R", "cat "+path, b.disk.Image).Output()
	if err != nil {
		b.t.Fatal(err)
	}
	return string(out)
}

// TestApplyGivesNothingUp has a last commit that is refused, since the kernel had aborted
// its journal: nothing is written, however often, until it is asked for.
func TestApplyGivesNothingUp(t *testing.T) {
	vm(t)
	b := sceneBench(t, scene.Spec{
		Modules: []string{"ext4"},
		Disks:   []scene.Disk{{Size: 256 << 20, Mkfs: []string{"mkfs.ext4", "-qF"}}},
		Script: `
mount -t ext4 -o errors=remount-ro /dev/vda /mnt
echo one >/mnt/one
sync
echo two >/mnt/two
echo 1 >/sys/fs/ext4/vda/trigger_fs_error
sleep 2
crash
`,
	})
	for range 2 {
		r := b.apply()
		if !r.Untouched || r.Complete || r.Applied != nil || !strings.Contains(r.Refused[0].Reason, "aborted") {
			t.Errorf("%+v", r)
		}
		b.untouched()
	}
	if r := b.apply("--give-up"); r.Untouched || r.Complete || r.Applied == nil {
		t.Errorf("with --give-up: %+v", r)
	}
	b.fails("since the crash")
	b.tidy()
}

// TestApplyErrorsPanic has a kernel that died of an error in the file system, as it was told
// to: what it had accepted is there, and the file system is checked before its mount.
func TestApplyErrorsPanic(t *testing.T) {
	vm(t)
	b := sceneBench(t, scene.Spec{
		CPUs:    1, // with more, the journal may be thrown away before the panic is through
		Modules: []string{"ext4"},
		Disks:   []scene.Disk{{Size: 256 << 20, Mkfs: []string{"mkfs.ext4", "-qF"}}},
		Script: `
mount -t ext4 -o errors=panic,commit=1000 /dev/vda /mnt
echo one >/mnt/one
sync
echo two >/mnt/two
echo three >>/mnt/one
echo 1 >/sys/fs/ext4/vda/trigger_fs_error
sleep 1000
`,
	})
	r := b.apply()
	if !r.Complete || r.Applied == nil || r.Applied.Check == nil || !strings.Contains(r.Commit.Check, "found an error") {
		t.Errorf("%+v, %+v, %+v", r, r.Commit, r.Applied)
	}
	if one, two := b.content("one"), b.content("two"); one != "one\nthree\n" || two != "two\n" {
		t.Errorf("%q, %q", one, two)
	}
	if out, err := exec.Command("e2fsck", "-fn", b.disk.Image).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
}
