package inventory_test

import (
	"slices"
	"testing"

	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/scene"
)

// TestModeless checks that inodes are not taken for files that a file system makes for itself and gives no mode: up to 6.1, at
// least, they have that of a file that was in the same memory before them (fs/inode.c, inode_init_always).
func TestModeless(t *testing.T) {
	for _, name := range []string{fixture.Default, "5.10-cloud", "newest-cloud"} {
		t.Run(name, func(t *testing.T) {
			fixture.NeedKernel(t, name)
			s := scene.Play(t, scene.Spec{
				Kernel: name, Modules: []string{"ext4", "btrfs", "vfat", "nls_ascii", "nls_cp437"},
				Disks: []scene.Disk{
					{Size: 64 << 20, Mkfs: []string{"mke2fs", "-qF", "-t", "ext4"}},
					{Size: 512 << 20, Mkfs: []string{"mkfs.btrfs", "-q"}},
					{Size: 64 << 20, Mkfs: []string{"mkfs.vfat", "-F", "32"}},
				},
				Script: `
echo 1000000 >/proc/sys/vm/dirty_writeback_centisecs
mkdir /mnt/a /mnt/b /mnt/c
mounts() {
	mount -t ext4 -o noinit_itable,commit=600 /dev/vda /mnt/a
	mount -t btrfs -o commit=600 /dev/vdb /mnt/b
	mount -t vfat -o iocharset=ascii /dev/vdc /mnt/c
}
mounts
for d in a b c; do
	i=0
	while [ $i -lt 300 ]; do : >/mnt/$d/old$i; i=$((i+1)); done
	rm /mnt/$d/old*
done
sleep 1 # RCU frees those inodes now, and those that umount drops after the next mount
umount /mnt/a /mnt/b /mnt/c
mounts
for d in a b c; do
	echo after >/mnt/$d/new
	sync -f /mnt/$d
	dd if=/dev/zero bs=64k count=1 of=/mnt/$d/new conv=notrunc 2>/dev/null
done
crash
`,
			})
			_, all := opened(t, s)
			for _, fs := range all {
				if fs.Super.InMemory() {
					continue
				}
				for _, every := range []bool{false, true} {
					var got []string
					for _, f := range fs.Find(inventory.Query{All: every}).Files {
						got = append(got, f.Label())
					}
					if !slices.Equal(got, []string{"new"}) {
						t.Errorf("%s on %s, all %v: %q", fs.Super.Type, fs.Device, every, got)
					}
				}
			}
		})
	}
}
