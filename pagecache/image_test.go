package pagecache_test

import (
	"testing"
	"time"

	"understudy/addr"
	"understudy/internal/fixture"
	"understudy/kernel"
	"understudy/pagecache"
	"understudy/ram"
)

// TestDirtyInImage wants the lists of the writeback machinery to name every
// inode that has unsaved bytes, as a look at all inodes finds them.
func TestDirtyInImage(t *testing.T) {
	for name, spec := range fixture.Common {
		t.Run(name, func(t *testing.T) {
			mem, err := ram.OpenFile(fixture.Get(t, spec).RAM)
			if err != nil {
				t.Fatal(err)
			}
			defer mem.Close()
			k, err := kernel.Find(mem)
			if err != nil {
				t.Fatal(err)
			}
			c, err := pagecache.Open(k)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for s, err := range c.Superblocks() {
				if err != nil {
					t.Fatal(err)
				}
				if s.HasBuffers() {
					n++
					compareDirty(t, c, s)
				}
			}
			if n != len(spec.FS) {
				t.Errorf("%d file systems instead of %d", n, len(spec.FS))
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
	if e.Super.UUID != s.UUID || e.Journal == nil || e.Journal.NextTransaction == 0 || !e.Super.NeedsReplay {
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
