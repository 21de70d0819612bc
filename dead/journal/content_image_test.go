package journal_test

import (
	"bytes"
	"os/exec"
	"testing"

	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/scene"
	"understudy.dev/understudy/internal/lab/tier"
)

// TestJournalledContent finishes a commit that has content of a file and not its inode: the inode's times wait
// (lazytime), and it already has its blocks and its size.
func TestJournalledContent(t *testing.T) {
	tier.Guest(t)
	tier.Programs(t, "mke2fs", "debugfs", "e2fsck")
	s := scene.Play(t, scene.Spec{
		Modules: []string{"ext4"},
		Disks:   []scene.Disk{{Size: 64 << 20, Mkfs: []string{"mke2fs", "-qF", "-t", "ext4", "-b", "4096"}}},
		Script: `
mount -t ext4 -o noinit_itable,commit=600,data=journal,lazytime /dev/vda /mnt
yes old | dd of=/mnt/file bs=4096 count=8 iflag=fullblock
sync
yes new | dd of=/mnt/file bs=4096 count=4 iflag=fullblock conv=notrunc
crash
`,
	})
	crashed := fixture.Disk{Name: "moving", Type: "ext4", Image: s.Disks[0], UUID: uuidOf(t, s.Disks[0])}
	moveAll(t, &fixture.Image{RAM: s.RAM, Disks: []fixture.Disk{crashed}}) // blocks of files are on the lists, too
	c := openCache(t, &fixture.Image{RAM: s.RAM})
	disk := copyOf(t, s.Disks[0])
	r, err := journal.Plan(c, superOf(t, c, crashed), disk)
	if err != nil {
		t.Fatal(err)
	}
	report, err := r.Finish(disk)
	if err != nil || report.Check != "" || report.Blocks == 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	fsck(t, disk.Name())
	got, err := exec.Command("debugfs", "-R", "cat /file", disk.Name()).Output()
	want := append(bytes.Repeat([]byte("new\n"), 4096), bytes.Repeat([]byte("old\n"), 4096)...)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("/file has %d bytes, %.16q, %v", len(got), got, err)
	}
}
