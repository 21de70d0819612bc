package salvage_test

import (
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/scene"
)

// TestAbsent checks that a plan for XFS and btrfs has the names that were removed and that the disk may still have.
func TestAbsent(t *testing.T) {
	for _, kernel := range fixture.Kernels {
		if strings.HasPrefix(kernel, "5.10") {
			continue // its modules have no types: both are refused
		}
		t.Run(kernel, func(t *testing.T) {
			fixture.NeedKernel(t, kernel)
			s := scene.Play(t, scene.Spec{
				Kernel: kernel, Modules: []string{"xfs", "btrfs"},
				Disks: []scene.Disk{
					{Size: 512 << 20, Mkfs: []string{"mkfs.xfs", "-q"}},
					{Size: 512 << 20, Mkfs: []string{"mkfs.btrfs", "-q"}},
				},
				Script: `
echo 720000 >/proc/sys/fs/xfs/xfssyncd_centisecs
mkdir /mnt/a /mnt/b
mount -t xfs /dev/vda /mnt/a
mount -t btrfs -o commit=600 /dev/vdb /mnt/b
for d in a b; do
	mkdir /mnt/$d/dir /mnt/$d/dir/sub
	for f in removed renamed kept replaced open; do echo $f >/mnt/$d/dir/$f; done
	echo top >/mnt/$d/top
done
sync
exec 5</mnt/a/dir/open 6</mnt/b/dir/open
for d in a b; do
	rm /mnt/$d/dir/open
	rm /mnt/$d/dir/removed /mnt/$d/top
	rmdir /mnt/$d/dir/sub
	mv /mnt/$d/dir/renamed /mnt/$d/dir/name
	mv /mnt/$d/dir/kept /mnt/$d/dir/replaced
	echo again >/mnt/$d/dir/kept
	[ ! -e /mnt/$d/dir/never ]
done
crash
`,
			})
			for n, disk := range s.Disks {
				p, _, _ := planFor(t, cacheOf(t, s.RAM), disk)
				seen := 0
				for _, f := range p.Files {
					if slices.Equal(f.Metadata.Former, []string{"dir/open"}) && f.NLink == 0 {
						seen++
					}
					want := map[string][]string{"": {"top"}, "dir": {"never", "removed", "sub"}}[f.Path]
					if want == nil || f.Metadata.Nameless {
						continue
					}
					seen++
					got := slices.Sorted(slices.Values(f.Metadata.Absent))
					for _, name := range want {
						if !slices.Contains(got, name) {
							t.Errorf("disk %d, %q: absent are %q, and not %s", n, f.Path, got, name)
						}
					}
					for _, name := range []string{"kept", "replaced", "name", "dir"} {
						if slices.Contains(got, name) {
							t.Errorf("disk %d, %q: absent are %q", n, f.Path, got)
						}
					}
				}
				if seen != 3 {
					t.Errorf("disk %d: %d of 2 directories, and a file that was open", n, seen)
				}
			}
		})
	}
}
