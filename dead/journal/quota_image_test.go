package journal_test

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/scene"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/initramfs"
)

// TestQuotasByMount finishes a commit that changes a quota file which a mount option names: its blocks are in the
// transaction, and its inode is not.
func TestQuotasByMount(t *testing.T) {
	tier.Guest(t)
	tier.Programs(t, "mke2fs", "debugfs", "e2fsck")
	dir := t.TempDir()
	from, quotaon := filepath.Join(dir, "from"), filepath.Join(dir, "quotaon")
	cmd := exec.Command("go", "build", "-o", quotaon, "./testdata/quotaon")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build quotaon: %v: %s", err, out)
	}
	quotas := make([]byte, 2048) // fs/quota/quotaio_v2.h, struct v2_disk_dqheader and v2_disk_dqinfo; and an empty root
	binary.LittleEndian.PutUint32(quotas, 0xd9c01f11)
	quotas[4], quotas[8+12] = 1, 2 // its version, and its number of blocks
	if err := os.Mkdir(from, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(from, "aquota.user"), quotas, 0o600); err != nil {
		t.Fatal(err)
	}
	s := scene.Play(t, scene.Spec{
		Modules: []string{"ext4", "quota_v2"},
		Files:   []initramfs.File{initramfs.Copy("/quotaon", quotaon, 0o755)},
		Disks:   []scene.Disk{{Size: 512 << 20, Mkfs: []string{"mke2fs", "-qF", "-t", "ext4", "-b", "4096", "-d", from}}},
		Script: `
mount -t ext4 -o noinit_itable,commit=600,usrjquota=aquota.user,jqfmt=vfsv1 /dev/vda /mnt
/quotaon /dev/vda /mnt/aquota.user
for n in $(seq 40); do : >/mnt/f$n; done # so that what changes is in another block of inodes
mkdir /mnt/d /mnt/d/first; chown 1000 /mnt/d/first; sync
mkdir /mnt/d/second; chown 1000 /mnt/d/second
crash
`,
	})
	c := openCache(t, &fixture.Image{RAM: s.RAM})
	disk := copyOf(t, s.Disks[0])
	r, err := journal.Plan(c, superOf(t, c, fixture.Disk{Type: "ext4", UUID: uuidOf(t, s.Disks[0])}), disk)
	if err != nil {
		t.Fatal(err)
	}
	report, err := r.Finish(disk)
	if err != nil || report.Check != "" || report.Blocks == 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	fsck(t, disk.Name())
	if out, err := exec.Command("debugfs", "-R", "stat /d/second", disk.Name()).Output(); err != nil || len(out) == 0 {
		t.Errorf("/d/second: %q, %v", out, err)
	}
	// With an operation in flight, the report says that the quotas may be wrong.
	disk = copyOf(t, s.Disks[0])
	if r, err = journal.Plan(c, superOf(t, c, fixture.Disk{Type: "ext4", UUID: uuidOf(t, s.Disks[0])}), disk); err != nil {
		t.Fatal(err)
	}
	r.Journal.Running.Updates, r.Place = 1, true
	if report, err = r.Finish(disk); err != nil || !strings.Contains(report.Placement.Err.Error(), "run quotacheck") {
		t.Errorf("%+v, %v", report, err)
	}
}
