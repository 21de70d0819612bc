package salvage_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/lab/scene"
)

// cacheOf opens the memory of a scene.
func cacheOf(t *testing.T, path string) *pagecache.Cache {
	t.Helper()
	c, err := pagecache.Open(kernelIn(t, path))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// check plans for a disk, and checks it against the plan.
func check(t *testing.T, c *pagecache.Cache, path string) error {
	t.Helper()
	p, _, disk := planFor(t, c, path)
	return p.Check(disk)
}

// planFor plans for a disk, which is closed when the test ends.
func planFor(t *testing.T, c *pagecache.Cache, path string) (*salvage.Plan, *pagecache.Superblock, *os.File) {
	t.Helper()
	disk, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { disk.Close() })
	on, err := salvage.Identify(disk)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Superblock(on.UUID)
	if err != nil {
		t.Fatal(err)
	}
	p, err := salvage.ForDisk(c, s, false)
	if err != nil {
		t.Fatal(err)
	}
	return p, s, disk
}

// wants checks that a disk was refused, or was not.
func wants(t *testing.T, what string, got error, refused bool) {
	t.Helper()
	if errors.Is(got, salvage.ErrDiskChanged) != refused || !refused && got != nil {
		t.Errorf("%s: refused: %v, and it should be %v", what, got, refused)
	}
}

func duplicate(t *testing.T, path string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.Command("cp", "--sparse=always", path, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	return to
}

// TestCheckLive uses a machine that went on after its memory was dumped, with every kind
// of file system: the disk at its death is refused for the dump, and the disk at the dump is
// refused for the memory at its death.
func TestCheckLive(t *testing.T) {
	names := []string{"ext4", "ext4 without a journal", "xfs", "btrfs"}
	s := scene.Play(t, scene.Spec{
		Modules: []string{"ext4", "xfs", "btrfs"},
		Memory:  384 << 20,
		Disks: []scene.Disk{
			{Size: 512 << 20, Mkfs: []string{"mkfs.ext4", "-qF"}}, {Size: 512 << 20, Mkfs: []string{"mkfs.ext4", "-qF", "-O", "^has_journal"}},
			{Size: 512 << 20, Mkfs: []string{"mkfs.xfs", "-q"}}, {Size: 512 << 20, Mkfs: []string{"mkfs.btrfs", "-q"}},
		},
		Script: `
i=0
for type in ext4 ext4 xfs btrfs; do
	i=$((i+1)); mkdir /mnt/$i; dev=$(echo abcd | cut -c$i)
	mount -t $type /dev/vd$dev /mnt/$i
	dd if=/dev/zero of=/mnt/$i/file bs=64k count=4 2>/dev/null
done
sync; sleep 1; sync
for i in 1 2 3 4; do echo older | dd of=/mnt/$i/file conv=notrunc 2>/dev/null; done
take live
for i in 1 2 3 4; do
	echo newer | dd of=/mnt/$i/file conv=notrunc,fsync 2>/dev/null
	echo more >/mnt/$i/another
done
sync
crash
`,
	})
	live, dead := cacheOf(t, s.Memory("live")), cacheOf(t, s.RAM)
	for n, name := range names {
		wants(t, name+", the dump and the disk of that moment", check(t, live, s.Disk("live", n)), false)
		wants(t, name+", the dump and the disk at the death", check(t, live, s.Disks[n]), true)
		wants(t, name+", the memory at the death and its disk", check(t, dead, s.Disks[n]), false)
		wants(t, name+", the memory at the death and an earlier disk", check(t, dead, s.Disk("live", n)), true)
	}
}

// TestCheckTools checks that a disk is refused after tools worked on it. The crash left it with
// no transaction open, and with files that were deleted while open.
func TestCheckTools(t *testing.T) {
	s := scene.Play(t, scene.Spec{
		Modules: []string{"ext4"},
		Disks:   []scene.Disk{{Size: 8 << 30, Mkfs: []string{"mkfs.ext4", "-qF", "-E", "lazy_itable_init=1"}}, {Size: 512 << 20, Mkfs: []string{"mkfs.ext4", "-qF"}}},
		Script: `
mkdir /mnt/0 /mnt/1
mount -t ext4 -o noinit_itable /dev/vda /mnt/0
mount -t ext4 -o noinit_itable /dev/vdb /mnt/1
for i in 1 2 3 4 5; do echo $i >/mnt/0/open$i; done
exec 3</mnt/0/open1 4</mnt/0/open2 5</mnt/0/open3
rm /mnt/0/open1 /mnt/0/open2 /mnt/0/open3
echo 1 >/mnt/1/file
sync; sleep 1; sync
crash
`,
	})
	c := cacheOf(t, s.RAM)
	for n, name := range []string{"with orphans", "without any"} {
		wants(t, name, check(t, c, s.Disks[n]), false)
		for what, tool := range map[string][]string{
			"e2fsck -p":    {"e2fsck", "-p"},
			"e2fsck -fy":   {"e2fsck", "-fy"},
			"tune2fs -L":   {"tune2fs", "-f", "-L", "label"},
			"journal_only": {"e2fsck", "-y", "-E", "journal_only"},
			"a leg":        {"truncate", "-s", "+1M"},
			"a part":       {"truncate", "-s", "-1M"},
		} {
			disk := duplicate(t, s.Disks[n])
			out, err := exec.Command(tool[0], append(tool[1:], disk)...).CombinedOutput()
			var exit *exec.ExitError
			if err != nil && !(errors.As(err, &exit) && exit.ExitCode() == 1) {
				t.Fatalf("%s: %v: %s", what, err, out)
			}
			wants(t, name+", "+what, check(t, c, disk), true)
		}
	}
}
