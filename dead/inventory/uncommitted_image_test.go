package inventory_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/scene"
)

// TestUncommitted checks that a file is listed whose pages were all written, if the disk does not have its size or its extents:
// the transaction with them was not committed. A file that was only read is not listed.
func TestUncommitted(t *testing.T) {
	for _, name := range fixture.Kernels {
		t.Run(name, func(t *testing.T) {
			fixture.NeedKernel(t, name)
			s := scene.Play(t, scene.Spec{
				Kernel: name, Modules: []string{"ext4", "xfs", "btrfs"},
				Disks: []scene.Disk{
					{Size: 64 << 20, Mkfs: []string{"mke2fs", "-qF", "-t", "ext4", "-I", "256"}},
					{Size: 512 << 20, Mkfs: []string{"mkfs.xfs", "-q"}},
					{Size: 512 << 20, Mkfs: []string{"mkfs.btrfs", "-q"}},
					{Size: 64 << 20, Mkfs: []string{"mke2fs", "-qF", "-t", "ext2", "-I", "256"}},
				},
				Script: `
echo 720000 >/proc/sys/fs/xfs/xfssyncd_centisecs
mkdir /mnt/a /mnt/b /mnt/c /mnt/d
mounts() {
	mount -t ext4 -o noinit_itable,commit=600 /dev/vda /mnt/a
	mount -t xfs /dev/vdb /mnt/b
	mount -t btrfs -o commit=600 /dev/vdc /mnt/c
	mount -t ext2 /dev/vdd /mnt/d
}
mounts
for d in a b c d; do
	for f in changed grown read saved; do echo before >/mnt/$d/$f; done
	umount /mnt/$d
done
mounts
# Another commit, since btrfs cannot tell what was changed in the last one. The clock of ctime may lag by a second.
for d in a b c d; do touch /mnt/$d/touched; done
sync
sleep 2
for d in a b c d; do
	cat /mnt/$d/saved
	echo after >>/mnt/$d/changed
	dd if=/dev/zero bs=4k count=1024 of=/mnt/$d/grown seek=1 conv=notrunc 2>/dev/null
	dd if=/dev/zero bs=4k count=1024 of=/mnt/$d/new 2>/dev/null
	: >/mnt/$d/empty
	cat /mnt/$d/read
done
# All pages are written; what is dirty then is metadata.
echo 1 >/proc/sys/vm/dirty_expire_centisecs
echo 10 >/proc/sys/vm/dirty_writeback_centisecs
dirty() { sed -n 's/^Dirty: *\([0-9]*\) kB/\1/p' /proc/meminfo; }
last=
while [ "$(dirty)" -ge 1024 -o "$(dirty)" != "$last" ] || ! grep -q '^Writeback: *0 kB' /proc/meminfo; do
	last=$(dirty)
	sleep 1
done
crash
`,
			})
			_, all := opened(t, s)
			known := !strings.HasPrefix(name, "5.10") // these have no types of xfs and btrfs
			for device, want := range map[string][]string{
				"vda": {"changed uncommitted", "empty new", "grown uncommitted", "new new"},
				"vdb": {"changed uncommitted", "empty uncommitted", "grown uncommitted", "new uncommitted"},
				"vdc": {"changed uncommitted", "empty uncommitted", "grown uncommitted", "new uncommitted"},
				"vdd": nil, // without a journal, the metadata is written just like the data
			} {
				unknown := !known && (device == "vdb" || device == "vdc")
				if unknown {
					want = nil
				}
				chosen, err := inventory.Choose(all, device)
				if err != nil {
					t.Fatal(err)
				}
				for _, every := range []bool{false, true} {
					got, faults := states(t, chosen[0], every)
					if !slices.Equal(got, want) {
						t.Errorf("%s, all %v: got %q, want %q", device, every, got, want)
					}
					if unknown != (len(faults) == 1 && errors.Is(faults[0], kernel.ErrNotFound)) || !unknown && len(faults) > 0 {
						t.Errorf("%s, all %v: %v", device, every, faults)
					}
				}
			}
		})
	}
}

// states tells the files that are not saved, and what the walk could not find.
func states(t *testing.T, fs *inventory.FileSystem, all bool) (out []string, faults []error) {
	t.Helper()
	found := fs.Find(inventory.Query{All: all, Clean: true})
	if len(found.Refused) > 0 {
		t.Errorf("%s: %v", fs.Device, found.Refused)
	}
	for _, f := range found.Files {
		if n := f.UnsavedBytes(); n > 0 {
			t.Errorf("%s: %d bytes of %s were not written", fs.Device, n, f.Label())
		}
		if f.State == inventory.Saved || f.State == inventory.Unknown && !f.Uncommitted {
			continue
		}
		out = append(out, fmt.Sprint(f.Path, " ", f.State))
	}
	return out, found.Faults
}
