package salvage_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/internal/lab/scene"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/initramfs"
)

// TestChangedUUID salvages file systems whose UUID was changed while they were mounted: the change is in the last commit,
// was synced, or, without a journal, is in memory only.
func TestChangedUUID(t *testing.T) {
	tier.Guest(t)
	setuuid := filepath.Join(t.TempDir(), "setuuid")
	cmd := exec.Command("go", "build", "-o", setuuid, "./testdata/setuuid")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build setuuid: %v: %s", err, out)
	}
	seeded := scene.Disk{Size: 64 << 20, Mkfs: []string{"mke2fs", "-qF", "-t", "ext4", "-O", "metadata_csum_seed"}}
	s := scene.Play(t, scene.Spec{
		Modules: []string{"ext4"},
		Files:   []initramfs.File{initramfs.Copy("/setuuid", setuuid, 0o755)},
		Disks:   []scene.Disk{seeded, seeded, {Size: 64 << 20, Mkfs: []string{"mke2fs", "-qF", "-t", "ext4", "-O", "^has_journal,^metadata_csum,^uninit_bg"}}},
		Script: `
for d in a b c; do
	mkdir /mnt/$d
	mount -t ext4 -o noinit_itable,nodelalloc /dev/vd$d /mnt/$d
done
/setuuid /mnt/b 2; sync
/setuuid /mnt/a 1; /setuuid /mnt/c 3
for d in a b c; do echo after >/mnt/$d/file; done
crash
`,
	})
	c := cacheOf(t, s.RAM)
	for n, name := range []string{"last commit", "synced", "no journal"} {
		t.Run(name, func(t *testing.T) {
			path := duplicate(t, s.Disks[n])
			if err := check(t, c, path); err != nil {
				t.Fatal(err)
			}
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
			if _, err := r.Finish(disk); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("e2fsck", "-fp", path).CombinedOutput()
			if exit := (*exec.ExitError)(nil); err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
				t.Fatalf("e2fsck: %v: %s", err, out)
			}
			if out, err := exec.Command("debugfs", "-R", "cat /file", path).Output(); err != nil || string(out) != "after\n" {
				t.Errorf("/file: %q, %v", out, err)
			}
		})
	}
}
