package journal

import (
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
)

// TestOutdated: a block of the log is not needed if unsaved data of a file is to be written to it, all of it.
func TestOutdated(t *testing.T) {
	f := &finisher{Rescue: &Rescue{
		Journal: &Journal{Running: &Transaction{Buffers: []Buffer{{Block: 3, File: 12}, {Block: 4}}}},
		super:   &pagecache.Superblock{BlockSize: 4096},
		data:    []block{{ino: 13, disk: 8 * 4096, len: 2 * 4096}},
	}}
	damaged := []addr.Block{3, 8, 9}
	if got := f.outdated(nil, slices.Clone(damaged)); !slices.Equal(got, damaged) {
		t.Errorf("%v", got)
	}
}
