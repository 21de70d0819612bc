package morgue

import (
	"testing"
	"time"

	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/live/wire"
)

// TestDirectoryNames: the top directory has an empty name, which is not the same as a name that memory does
// not have.
func TestDirectoryNames(t *testing.T) {
	for name, tc := range map[string]struct {
		path     string
		metadata salvage.Metadata
		want     []string
	}{
		"top":      {"", salvage.Metadata{}, []string{""}},
		"nameless": {"", salvage.Metadata{Nameless: true}, nil},
		"another":  {"a/b", salvage.Metadata{Committed: true}, []string{"a/b"}},
	} {
		f := salvage.File{Path: tc.path, Mode: pagecache.ModeDir | 0o755, NLink: 2, Metadata: &tc.metadata}
		got := wireAttr(0, &f, false).Paths
		if len(got) != len(tc.want) || len(got) > 0 && string(got[0]) != tc.want[0] {
			t.Errorf("%s: named %q, want %q", name, got, tc.want)
		}
	}
}

// TestXattrs: extended attributes are all those of an inode, or the disk's, or not known.
func TestXattrs(t *testing.T) {
	some := []pagecache.Attribute{{Name: "user.a", Value: []byte("x")}}
	for name, tc := range map[string]struct {
		metadata  salvage.Metadata
		all, lack bool
		n         int
	}{
		"some":      {salvage.Metadata{Attributes: some}, true, false, 1},
		"none":      {salvage.Metadata{}, true, false, 0},
		"committed": {salvage.Metadata{Committed: true}, false, false, 0},
		"not known": {salvage.Metadata{Lacking: pagecache.ErrAttributes}, false, true, 0},
	} {
		f := salvage.File{Mode: pagecache.ModeRegular, NLink: 1, Metadata: &tc.metadata}
		if a := wireAttr(0, &f, false); a.XattrsAll != tc.all || a.XattrsLack != "" != tc.lack || len(a.Xattrs) != tc.n {
			t.Errorf("%s: %+v", name, a)
		}
	}
}

// TestDirectoryTime: the time of its last change tells a directory from one that it is a copy of.
func TestDirectoryTime(t *testing.T) {
	for _, mode := range []uint16{pagecache.ModeDir, pagecache.ModeRegular} {
		f := salvage.File{Mode: mode, Ctime: time.Unix(7, 8), Metadata: &salvage.Metadata{}}
		if got := wireAttr(0, &f, false).Ctime; (got == wire.Time{Sec: 7, Nsec: 8}) != (mode == pagecache.ModeDir) {
			t.Errorf("mode %o: %+v", mode, got)
		}
	}
}
