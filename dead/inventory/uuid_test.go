package inventory

import (
	"slices"
	"testing"

	"understudy.dev/understudy/dead/pagecache"
)

// TestOfUUID checks that a file system that has a UUID is preferred to one that had it.
func TestOfUUID(t *testing.T) {
	fs := func(now, was byte) *FileSystem {
		return &FileSystem{Super: &pagecache.Superblock{UUID: pagecache.UUID{now}, MountUUID: pagecache.UUID{was}}}
	}
	a, b, c := fs(1, 1), fs(3, 2), fs(2, 2)
	for _, tc := range []struct {
		all  []*FileSystem
		id   byte
		want []*FileSystem
	}{
		{[]*FileSystem{a, b}, 1, []*FileSystem{a}},
		{[]*FileSystem{a, b}, 2, []*FileSystem{b}},
		{[]*FileSystem{a, b}, 3, []*FileSystem{b}},
		{[]*FileSystem{a, b, c}, 2, []*FileSystem{c}},
		{[]*FileSystem{a, c, c}, 2, []*FileSystem{c, c}},
		{[]*FileSystem{a, b, c}, 4, nil},
	} {
		if got := OfUUID(tc.all, pagecache.UUID{tc.id}); !slices.Equal(got, tc.want) {
			t.Errorf("%d of %d have %d: %v", len(got), len(tc.all), tc.id, got)
		}
		if got, err := Choose(tc.all, pagecache.UUID{tc.id}.String()); !slices.Equal(got, tc.want) || (err == nil) != (tc.want != nil) {
			t.Errorf("%d of %d are chosen by %d: %v, %v", len(got), len(tc.all), tc.id, got, err)
		}
	}
}
