package journal_test

import (
	"os"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/fixture"
)

func openCache(t testing.TB, image *fixture.Image) *pagecache.Cache {
	t.Helper()
	mem, err := ram.OpenFile(image.RAM)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
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

func superOf(t testing.TB, c *pagecache.Cache, d fixture.Disk) *pagecache.Superblock {
	t.Helper()
	id, err := addr.ParseUUID(d.UUID)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Superblock(id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRead(t *testing.T) {
	for _, name := range fixture.Kernels {
		t.Run(name, func(t *testing.T) {
			spec := fixture.Basic
			spec.Kernel = name
			image := fixture.Get(t, spec)
			c := openCache(t, image)
			for _, d := range image.Disks {
				s := superOf(t, c, d)
				disk, err := os.Open(d.Image)
				if err != nil {
					t.Fatal(err)
				}
				defer disk.Close()
				dev, err := c.Device(s, disk)
				if err != nil {
					t.Fatal(err)
				}
				j, err := journal.Of(c, s, dev)
				if err != nil {
					t.Errorf("%s: %v", d.Name, err)
					continue
				}
				t.Logf("%s: head %d of %d-%d, %d revoked, %d updates", d.Name, j.Head, j.First, j.Last, len(j.Revoked), j.Updates())
				for _, tr := range []*journal.Transaction{j.Committing, j.Running} {
					if tr != nil {
						t.Logf("  %d %v: %d buffers, %d freed, log start %d", tr.ID, tr.State, len(tr.Buffers), tr.Freed, tr.LogStart)
					}
				}
			}
		})
	}
}
