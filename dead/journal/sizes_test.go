package journal

import (
	"maps"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/pagecache"
)

// counted is a disk that counts reads.
type counted struct {
	*jbd2.Recording
	reads int
}

func (c *counted) ReadAt(b []byte, off int64) (int, error) {
	c.reads++
	return c.Recording.ReadAt(b, off)
}

// TestCompareSizes compares the sizes of many inodes with the disk, which is read once for the inodes
// of one block. One inode is as memory has it; the others are not there, or are shorter.
func TestCompareSizes(t *testing.T) {
	disk := &counted{Recording: emptyDisk(t)}
	f := &finisher{Rescue: &Rescue{whole: make(map[addr.Ino]*pagecache.Inode)}, disk: disk, report: &Report{}}
	const root, lost = 2, 11
	for n := addr.Ino(12); n < 1012; n++ {
		f.whole[n] = &pagecache.Inode{Ino: n, Mode: pagecache.ModeRegular, Size: 1}
	}
	f.whole[root] = &pagecache.Inode{Ino: root, Size: 4097}
	f.whole[lost] = &pagecache.Inode{Ino: lost, Size: 16384}
	if _, err := f.change(&jbd2.Transaction{}); err != nil {
		t.Fatal(err)
	}
	disk.reads = 0
	if err := f.compareSizes(nil); err != nil {
		t.Fatal(err)
	}
	want := slices.DeleteFunc(slices.Sorted(maps.Keys(f.whole)), func(n addr.Ino) bool { return n == lost })
	if got := slices.Sorted(maps.Keys(f.resized)); !slices.Equal(got, want) {
		t.Errorf("%d inodes are not of their size, not %d: %v", len(got), len(want), got)
	}
	if most := 1012/16 + 10; disk.reads > most {
		t.Errorf("%d reads, more than %d", disk.reads, most)
	}
}
