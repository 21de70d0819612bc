package salvage_test

import (
	"errors"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/salvage"
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
	p, _, _ := planFor(t, cacheOf(t, s.RAM), s.Disks[0])
	for _, err := range p.Faults {
		t.Error(err)
	}
	var refused []addr.Ino
	for _, r := range p.Refused {
		if !errors.Is(r, pagecache.ErrDropped) {
			t.Error(r)
		}
		refused = append(refused, r.Inode)
	}
	kept := slices.ContainsFunc(p.Files, func(f salvage.File) bool { return f.Path == "d/kept" })
	if len(refused) != 1 || !kept {
		t.Errorf("refused: %v; kept is in the plan: %v; files: %+v", refused, kept, p.Files)
	}
}
