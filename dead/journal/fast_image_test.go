package journal_test

import (
	"errors"
	"os/exec"
	"testing"

	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/scene"
	"understudy.dev/understudy/internal/lab/tier"
)

// TestFastCommitted finishes a commit during which a program has called fsync: the disk has what that synced in a fast
// commit, and memory has it with everything that came after.
func TestFastCommitted(t *testing.T) {
	tier.Guest(t)
	tier.Programs(t, "mke2fs", "debugfs", "e2fsck")
	s := scene.Play(t, scene.Spec{
		Modules: []string{"ext4"},
		Disks:   []scene.Disk{{Size: 64 << 20, Mkfs: []string{"mke2fs", "-qF", "-t", "ext4", "-b", "4096", "-O", "fast_commit"}}},
		Script: `
mount -t ext4 -o noinit_itable,commit=600 /dev/vda /mnt
echo first >/mnt/first; sync
echo synced | dd of=/mnt/a conv=fsync 2>/dev/null
mkdir /mnt/b; ln -s target /mnt/b/link; mv /mnt/first /mnt/b/moved
crash
`,
	})
	c := openCache(t, &fixture.Image{RAM: s.RAM})
	disk := copyOf(t, s.Disks[0])
	log, err := jbd2.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	if scan, err := log.Scan(); err != nil || scan.Fast.Tags == 0 {
		t.Fatalf("no fast commits: %+v, %v", scan, err)
	}
	r, err := journal.Plan(c, superOf(t, c, fixture.Disk{Type: "ext4", UUID: uuidOf(t, s.Disks[0])}), disk)
	if err != nil {
		t.Fatal(err)
	}
	r.Place = true
	report, err := r.Finish(disk)
	if err != nil {
		t.Fatal(err)
	}
	if report.Placement == nil || !errors.Is(report.Placement.Err, jbd2.ErrFastCommits) {
		t.Errorf("places: %+v", report.Placement)
	}
	fsck(t, disk.Name())
	for path, want := range map[string]string{"/a": "synced\n", "/b/moved": "first\n"} {
		if got, err := exec.Command("debugfs", "-R", "cat "+path, disk.Name()).Output(); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v", path, got, err)
		}
	}
	if out, err := exec.Command("debugfs", "-R", "stat /b/link", disk.Name()).Output(); err != nil || len(out) == 0 {
		t.Errorf("/b/link: %q, %v", out, err)
	}
}
