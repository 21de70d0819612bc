package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/internal/lab/scene"
	"understudy.dev/understudy/internal/lab/tier"
)

// TestOwnInodes checks that inodes that file systems keep for themselves (quotas, orphans, a journal, free space,
// a real-time section that does not exist) are not taken for files, even if their numbers could be those of files.
func TestOwnInodes(t *testing.T) {
	together(t)
	tier.Full(t, "quotas of XFS, free space of btrfs in files")
	b := sceneBench(t, scene.Spec{
		Kernel:  "6.1-generic",
		Modules: []string{"ext4", "quota_v2", "xfs", "btrfs"},
		Disks: []scene.Disk{
			{Size: 128 << 20, Mkfs: []string{"mkfs.ext4", "-qF", "-O", "quota,project,orphan_file", "-E", "quotatype=usrquota:grpquota:prjquota"}},
			{Size: 512 << 20, Mkfs: []string{"mkfs.xfs", "-qf"}},
			{Size: 512 << 20, Mkfs: []string{"mkfs.btrfs", "-qf", "-R", "^free-space-tree"}},
		},
		Script: `
echo 1000000 >/proc/sys/vm/dirty_writeback_centisecs
mkdir /xfs /btrfs
mount -t ext4 -o commit=1000 /dev/vda /mnt
mount -t xfs -o uquota,gquota,pquota /dev/vdb /xfs
mount -t btrfs -o space_cache=v1,commit=1000 /dev/vdc /btrfs
for d in /mnt /xfs /btrfs; do
	seq 1 5000 >$d/old
done
sync
rm /btrfs/old; seq 1 200000 >/btrfs/old # its space is remembered with the next commit
sync
for d in /mnt /xfs /btrfs; do
	mkdir $d/dir
	echo new >$d/dir/new
done
crash
`,
	})
	dir := filepath.Join(t.TempDir(), "out")
	if got := command(t, "salvage", "extract", b.image.RAM, "-o", dir, "--all"); got.err != nil {
		t.Fatal(got.err, got.errs)
	}
	raw, err := os.ReadFile(filepath.Join(dir, inventory.Manifest))
	if err != nil {
		t.Fatal(err)
	}
	var r inventory.Report
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	var seen []string
	for _, f := range r.FileSystems {
		var paths []string
		for _, file := range f.Files {
			paths = append(paths, inventory.TextOf(file.Path, file.PathBase64))
		}
		if got := strings.Join(paths, " "); got != "dir/new old" && got != "/dir/new /old" {
			t.Errorf("%s on %s has %q", f.Type, f.Device, got)
		}
		seen = append(seen, f.Type)
	}
	slices.Sort(seen)
	if !slices.Equal(seen, []string{"btrfs", "ext4", "xfs"}) {
		t.Errorf("file systems: %q", seen)
	}
}
