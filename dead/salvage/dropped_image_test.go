package salvage_test

import (
	"errors"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/scene"
	"understudy.dev/understudy/internal/lab/tier"
)

// TestDropped checks that a file of XFS is refused by name if its creation was not committed, and the kernel has dropped its
// inode from memory; a file that was dropped and deleted is not.
func TestDropped(t *testing.T) {
	tier.Guest(t)
	s := scene.Play(t, scene.Spec{
		Modules: []string{"xfs"},
		Disks:   []scene.Disk{{Size: 512 << 20, Mkfs: []string{"mkfs.xfs", "-q"}}},
		Script: `
mount -t xfs /dev/vda /mnt
echo 72000 >/proc/sys/fs/xfs/xfssyncd_centisecs
mkdir /mnt/d; touch /mnt/d/committed
umount /mnt # else what is to be written to its place forces the log, when caches are dropped
mount -t xfs /dev/vda /mnt
touch /mnt/d/dropped /mnt/d/deleted
for n in 1 2 3; do echo 2 >/proc/sys/vm/drop_caches; done # what was in use just before is spared once
rm /mnt/d/deleted
touch /mnt/d/kept
crash
`,
	})
	if refused := droppedIn(t, s); len(refused) != 1 {
		t.Errorf("refused: %v", refused)
	}
}

// droppedIn returns the inodes that are refused because the kernel had dropped them. d/kept must be in the plan, and nothing else be refused.
func droppedIn(t *testing.T, s *scene.Scene) (refused []addr.Ino) {
	t.Helper()
	p, _, _ := planFor(t, cacheOf(t, s.RAM), s.Disks[0])
	for _, err := range p.Faults {
		t.Error(err)
	}
	for _, r := range p.Refused {
		if !errors.Is(r, pagecache.ErrDropped) {
			t.Error(r)
		}
		refused = append(refused, r.Inode)
	}
	if !slices.ContainsFunc(p.Files, func(f salvage.File) bool { return f.Path == "d/kept" }) {
		t.Errorf("kept is not in the plan: %+v", p.Files)
	}
	if listed := listedAsDropped(t, s); !slices.Equal(listed, refused) {
		t.Errorf("refused in the list: %v, in the plan: %v", listed, refused)
	}
	return refused
}

// listedAsDropped returns the inodes that an inventory refuses.
func listedAsDropped(t *testing.T, s *scene.Scene) (refused []addr.Ino) {
	t.Helper()
	image, err := inventory.Open(s.RAM)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	all, _, err := image.FileSystems()
	if err != nil {
		t.Fatal(err)
	}
	chosen, err := inventory.Choose(all, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range chosen {
		for _, r := range f.Find(inventory.Query{}).Refused {
			refused = append(refused, r.Inode)
		}
	}
	return refused
}

// TestDroppedBtrfs is the same for btrfs, where a file that was fsynced is not refused either: the log tree has it.
func TestDroppedBtrfs(t *testing.T) {
	tier.Guest(t)
	for _, kernel := range fixture.Kernels {
		if kernel == "5.10-cloud" || kernel == "5.10-generic" {
			continue // its modules have no types: btrfs is refused
		}
		t.Run(kernel, func(t *testing.T) {
			fixture.NeedKernel(t, kernel)
			s := scene.Play(t, scene.Spec{
				Kernel:  kernel,
				Modules: []string{"btrfs"},
				Memory:  512 << 20,
				Disks:   []scene.Disk{{Size: 512 << 20, Mkfs: []string{"mkfs.btrfs", "-q"}}},
				Script: `
mount -t btrfs -o commit=300 /dev/vda /mnt
mkdir /mnt/d; for f in same changed gone; do echo before >/mnt/d/$f; done
for n in $(seq 500); do ln -s /anywhere /mnt/d/link-$n; done # so that the tree has more than one block
umount /mnt
mount -t btrfs -o commit=300 /dev/vda /mnt
echo content | dd of=/mnt/d/logged conv=fsync 2>/dev/null
touch /mnt/d/dropped /mnt/d/deleted
chmod 640 /mnt/d/changed
for n in 1 2 3; do echo 2 >/proc/sys/vm/drop_caches; done
rm /mnt/d/deleted /mnt/d/gone
touch /mnt/d/kept
crash
`,
			})
			// The first inode that mkdir makes is 257.
			const changed, dropped = 259, 762
			if refused := droppedIn(t, s); !slices.Equal(refused, []addr.Ino{changed, dropped}) {
				t.Errorf("refused: %v", refused)
			}
		})
	}
}
