package pagecache_test

import (
	"maps"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/fixture"
)

// images are the crashes that are common to all packages, and one of each kernel.
func images() map[string]fixture.Spec {
	all := maps.Clone(fixture.Common)
	for _, name := range fixture.Kernels {
		all[name] = fixture.Everything(name)
	}
	return all
}

func openImage(t *testing.T, spec fixture.Spec) (*pagecache.Cache, *fixture.Image) {
	t.Helper()
	image := fixture.Get(t, spec)
	mem, err := ram.OpenFile(image.RAM)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	return openCache(t, mem), image
}

func openCache(t *testing.T, mem ram.Memory) *pagecache.Cache {
	t.Helper()
	k, err := kernel.Find(mem)
	if err != nil {
		t.Fatal(err)
	}
	c, err := pagecache.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestJournalInImage checks that what is read of the kernel's jbd2 is what the
// journal's superblock on the disk says. Debian's generic 5.10 does not tell
// where these members are (moduletypes.go).
func TestJournalInImage(t *testing.T) {
	for _, name := range fixture.Kernels {
		t.Run(name, func(t *testing.T) {
			c, image := openImage(t, fixture.Everything(name))
			for _, disk := range image.Disks {
				if disk.Type == "ext4" || disk.Type == "ext3" {
					t.Run(disk.Name, func(t *testing.T) { compareJournal(t, c, image, disk) })
				}
			}
		})
	}
}

func compareJournal(t *testing.T, c *pagecache.Cache, image *fixture.Image, disk fixture.Disk) {
	e, err := c.Ext4(superOf(t, c, image, disk.Name))
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("dumpe2fs", "-h", disk.Image).Output()
	if err != nil {
		t.Fatal(err)
	}
	said := func(field string) uint64 {
		_, rest, _ := strings.Cut(string(out), field+":")
		line, _, _ := strings.Cut(rest, "\n")
		v, err := strconv.ParseUint(strings.TrimSpace(line), 0, 64)
		if err != nil {
			t.Fatalf("%s: %v in %s", field, err, out)
		}
		return v
	}
	j := e.Journal
	if uint64(j.TailSequence) != said("Journal sequence") || uint64(j.Tail) != said("Journal start") {
		t.Errorf("%+v, but the disk says %s", j, out)
	}
	// Blocks of the log and transactions since, as TestImages crashes them.
	if j.Head <= j.Tail || j.Head > j.Tail+4096 || j.CommitSequence < j.TailSequence || j.NextTransaction <= j.CommitSequence ||
		j.NextTransaction > j.CommitSequence+3 {
		t.Errorf("%+v", j)
	}
}

// TestDirtyInImage checks that the lists of the writeback machinery name every
// inode that has unsaved bytes, as a walk over all inodes finds them, and that no
// inode of any file system is refused.
func TestDirtyInImage(t *testing.T) {
	for name, spec := range images() {
		t.Run(name, func(t *testing.T) {
			c, _ := openImage(t, spec)
			n := 0
			for s, err := range c.Superblocks() {
				if err != nil {
					t.Fatal(err)
				}
				if s.HasBuffers() {
					n++
					compareDirty(t, c, s)
					continue
				}
				if s.Type == "bdev" {
					continue // of the kernel itself: devices without numbers
				}
				for _, err := range c.Inodes(s) {
					if err != nil {
						t.Errorf("%s (%s): %v", s.ID, s.Type, err)
					}
				}
			}
			want := 0
			for _, fs := range spec.FS {
				if strings.HasPrefix(fs, "ext") {
					want++
				}
			}
			if n != want {
				t.Errorf("%d file systems instead of %d", n, want)
			}
		})
	}
}

func compareDirty(t *testing.T, c *pagecache.Cache, s *pagecache.Superblock) {
	t.Helper()
	start := time.Now()
	listed := make(map[addr.Ino]bool)
	for i, err := range c.Dirty(s) {
		if err != nil {
			t.Error(err)
			continue
		}
		listed[i.Ino] = true
	}
	byLists := time.Since(start)
	e, err := c.Ext4(s)
	if err != nil {
		t.Fatal(err)
	}
	if journaled := s.Type != "ext2"; e.Super.UUID != s.UUID || (e.Journal != nil) != journaled || e.Super.NeedsReplay() != journaled {
		t.Errorf("%s: %+v, %+v", s.ID, e.Super, e.Journal)
	}
	all, unsaved := 0, 0
	start = time.Now()
	for i, err := range c.Inodes(s) {
		if err != nil {
			t.Error(err)
			continue
		}
		all++
		if !i.Regular() {
			continue
		}
		for _, err := range c.Unsaved(s, i) {
			if err != nil {
				t.Error(err)
			}
			unsaved++
			if !listed[i.Ino] {
				t.Errorf("inode %d has unsaved bytes and is on no list", i.Ino)
			}
			break
		}
	}
	t.Logf("%s (%s): %d inodes, %d listed in %v, %d with unsaved bytes, looked through in %v",
		s.ID, s.Type, all, len(listed), byLists, unsaved, time.Since(start))
}
