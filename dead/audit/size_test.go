package audit

import (
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// TestBeyond: a block behind the end of a file is one that has none of its bytes, however the file ends.
func TestBeyond(t *testing.T) {
	const block = 4096
	for name, tc := range map[string]struct {
		size   uint64
		x      extent
		orphan bool
		want   bool
	}{
		"within":                   {3 * block, extent{logical: 1, length: 2}, false, false},
		"in the last block":        {2*block + 1, extent{logical: 1, length: 2}, false, false},
		"behind a whole block":     {2 * block, extent{logical: 1, length: 2}, false, true},
		"behind a part of a block": {2*block - 1, extent{logical: 1, length: 2}, false, true},
		"of an empty file":         {0, extent{length: 1}, false, true},
		"unwritten":                {2 * block, extent{logical: 1, length: 2, unwritten: true}, false, false},
		"of an orphan":             {2 * block, extent{logical: 1, length: 2}, true, false},
	} {
		c := &checker{new: &view{super: ext4.Super{BlockSize: block}}}
		c.orphans.new = make(map[addr.Ino]source)
		if tc.orphan {
			var listed source
			c.orphans.new[12] = listed
		}
		i := &inode{number: 12, new: &state{Inode: &ext4.Inode{Size: tc.size}, file: mapping{extents: []extent{tc.x}}}}
		if last, got := c.beyond(i); got != tc.want || got && last != tc.x.logical+tc.x.length-1 {
			t.Errorf("%s: block %d, %v", name, last, got)
		}
	}
}
