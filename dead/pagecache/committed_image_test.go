package pagecache_test

import (
	"hash/crc32"
	"os"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/fixture/record"
)

// superOf returns a file system of an image by its name in the fixture.
func superOf(t *testing.T, c *pagecache.Cache, image *fixture.Image, name string) *pagecache.Superblock {
	t.Helper()
	id, err := addr.ParseUUID(image.Format(name).UUID)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Superblock(id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// hasTypes reports whether a kernel keeps types of its modules.
func hasTypes(kernel string) bool { return kernel[:4] != "5.10" }

// TestXFSMapping checks that the blocks in which a file lies according to memory have,
// on the disk, what the guest had in the file, except for what the guest changed.
func TestXFSMapping(t *testing.T) {
	for _, kernel := range fixture.Kernels {
		for _, name := range []string{"xfs", "xfs-1k"} {
			t.Run(kernel+" "+name, func(t *testing.T) {
				c, image := openImage(t, fixture.Everything(kernel))
				s := superOf(t, c, image, name)
				x, err := c.XFS(s)
				if !hasTypes(kernel) {
					if err == nil {
						t.Error("read without types")
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				checkMapping(t, c, s, x, image.Format(name), image.Files(name))
				if r, _, err := x.Records(); err != nil || len(r) == 0 {
					t.Errorf("records of the log: %v, %v", r, err)
				}
			})
		}
	}
}

func checkMapping(t *testing.T, c *pagecache.Cache, s *pagecache.Superblock, x *pagecache.XFS, disk fixture.Disk, truth []record.File) {
	t.Helper()
	byIno := make(map[uint64]record.File)
	for _, f := range truth {
		byIno[f.Ino] = f
	}
	img, err := os.Open(disk.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer img.Close()
	checked, delayed := 0, 0
	for i, err := range c.Inodes(s) {
		if err != nil {
			t.Fatal(err)
		}
		want, ok := byIno[uint64(i.Ino)]
		if !ok || !i.Regular() {
			continue
		}
		mapped, err := x.Mapping(i)
		if err != nil {
			t.Fatalf("%q: %v", want.Path, err)
		}
		changed := make(map[int]bool)
		for _, n := range want.Changed {
			changed[n] = true
		}
		for _, m := range mapped {
			if m.Disk == pagecache.Delayed {
				delayed++
			}
			if m.Disk == pagecache.Delayed || m.Unwritten {
				continue
			}
			for off := m.Off; off+record.Unit <= min(m.End, want.Size); off += record.Unit {
				n := int(off / record.Unit)
				sum, ok := want.Sums[n]
				if changed[n] || !ok {
					continue
				}
				b := make([]byte, record.Unit)
				if _, err := img.ReadAt(b, m.Disk+off-m.Off); err != nil {
					t.Fatal(err)
				}
				if crc32.Checksum(b, record.Castagnoli) != sum {
					t.Errorf("%q: its bytes at %d are not at %d of the disk", want.Path, off, m.Disk+off-m.Off)
				}
				checked++
			}
		}
	}
	t.Logf("%d units are where memory says, %d stretches have no place yet", checked, delayed)
	if checked < 500 || delayed < 50 {
		t.Errorf("only %d units checked, %d stretches without a place", checked, delayed)
	}
}

// TestCommitted checks that files which the guest changed after its last sync do not count
// as committed. For btrfs, a file whose data is all unsaved has not changed yet.
func TestCommitted(t *testing.T) {
	for _, kernel := range fixture.Kernels {
		if !hasTypes(kernel) {
			continue
		}
		for _, name := range []string{"xfs", "xfs-1k", "btrfs"} {
			t.Run(kernel+" "+name, func(t *testing.T) {
				c, image := openImage(t, fixture.Everything(kernel))
				s := superOf(t, c, image, name)
				var committed func(*pagecache.Inode) (bool, error)
				var b *pagecache.Btrfs
				if name == "btrfs" {
					var err error
					if b, err = c.Btrfs(s); err != nil {
						t.Fatal(err)
					}
					committed = b.Committed
				} else {
					x, err := c.XFS(s)
					if err != nil {
						t.Fatal(err)
					}
					committed = x.Committed
				}
				checkCommitted(t, c, s, b, committed, image.Files(name))
			})
		}
	}
}

func checkCommitted(t *testing.T, c *pagecache.Cache, s *pagecache.Superblock, b *pagecache.Btrfs, committed func(*pagecache.Inode) (bool, error), truth []record.File) {
	t.Helper()
	paths := c.Paths(s)
	byPath := make(map[string]record.File)
	for _, f := range truth {
		byPath[string(f.Path)] = f
	}
	counts := make(map[bool]int)
	for i, err := range c.Inodes(s) {
		if err != nil {
			t.Fatal(err)
		}
		path, err := paths.Of(i)
		want, ok := byPath[path]
		if err != nil || !ok || !i.Regular() {
			continue
		}
		got, err := committed(i)
		if err != nil {
			t.Fatalf("%q: %v", path, err)
		}
		counts[got]++
		if got && len(want.Changed) > 0 && b == nil {
			t.Errorf("%q was changed, and the disk is said to have it", path)
		}
		if b == nil {
			continue
		}
		if root, err := b.Root(i); err != nil || root != 5 {
			t.Errorf("%q is in subvolume %d, %v", path, root, err)
		}
		kept, err := b.Kept(i)
		if err != nil {
			t.Fatalf("%q: %v", path, err)
		}
		if kept && (path == "old/shrunk" || path == "old/trunc") {
			t.Errorf("%q was cut, and the disk is said to have its places", path)
		}
	}
	t.Logf("%d files are committed, %d not", counts[true], counts[false])
	if counts[false] < 120 {
		t.Errorf("only %d files are not committed", counts[false])
	}
}
