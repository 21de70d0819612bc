package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/scene"
)

// sceneBench plays a scene with one disk, and returns a bench for it.
func sceneBench(t *testing.T, spec scene.Spec) *bench {
	t.Helper()
	s := scene.Play(t, spec)
	b := &bench{t: t, image: &fixture.Image{RAM: s.RAM}}
	b.disk.Image = filepath.Join(t.TempDir(), "disk")
	b.crash.Image = s.Disks[0]
	copyDisk(t, b.crash.Image, b.disk.Image)
	return b
}

// TestApplyGivesNothingUp tests a last commit that is refused, since the kernel had aborted its
// journal: nothing is written, however often apply is run, until it is told to give the commit up.
func TestApplyGivesNothingUp(t *testing.T) {
	together(t)
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
	if r := b.apply(); !r.Untouched || r.Complete { // what was given up stays given up
		t.Errorf("once more: %+v", r)
	}
	b.tidy()
}

// TestApplyErrorsPanic tests a kernel that panicked because of an error in the file system,
// as it was told to. It throws away what it had not committed; the files are still in memory.
func TestApplyErrorsPanic(t *testing.T) {
	together(t)
	b := sceneBench(t, scene.Spec{
		Modules: []string{"ext4"},
		Disks:   []scene.Disk{{Size: 256 << 20, Mkfs: []string{"mkfs.ext4", "-qF"}}},
		Script: `
mount -t ext4 -o errors=panic /dev/vda /mnt
echo one >/mnt/one
sync
echo two >/mnt/two
echo three >>/mnt/one
echo 1 >/sys/fs/ext4/vda/trigger_fs_error
sleep 1000
`,
	})
	r := b.apply()
	if !r.Untouched || len(r.Refused) != 3 || !strings.Contains(r.Refused[0].Reason, "aborted") {
		t.Errorf("%+v", r)
	}
	b.untouched()
	out := filepath.Join(t.TempDir(), "out")
	if got := command(t, "salvage", "extract", b.image.RAM, "-o", out); got.err != nil {
		t.Fatalf("%v: %s", got.err, got.out)
	}
	for name, want := range map[string]string{"one": "one\nthree\n", "two": "two\n"} {
		if got, err := os.ReadFile(filepath.Join(out, "vda", name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
