package pagecache_test

import (
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
)

// failed makes a write of a file end with EIO, which fsync(2) has reported already.
func (w *world) failed(inode addr.Virt) {
	w.PutU32(inode+inWrong, 0x3000|5)
	w.PutU32(w.sb+sbWrong, 0x3000|5)
}

// TestFailed checks that clean pages count as unsaved after a write of the file has failed: memory has the only copy.
func TestFailed(t *testing.T) {
	const clean = 1 << pgUptodate
	for name, tc := range map[string]struct {
		size  int64
		build func(w *world, i addr.Virt)
		want  []string
	}{
		"all in memory, and clean": {2*addr.PageSize + 5, func(w *world, i addr.Virt) {
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{0: w.page(i, 0, clean, 'a'), 1: w.page(i, 1, clean, 'b'), 2: w.page(i, 2, clean, 'c')}))
			w.PutU32(i+inTreeFlags, 0x21)
		}, []string{"a[0,4096)", "b[4096,8192)", "c[8192,12288)"}},
		"one clean page": {5, func(w *world, i addr.Virt) {
			w.head(i, w.page(i, 0, clean, 'a'))
			w.PutU32(i+inTreeFlags, 0x21)
		}, []string{"a[0,4096)"}},
		"a page that was evicted": {5, func(w *world, i addr.Virt) { w.head(i, 0x1235) },
			[]string{"0+1 a write of it failed"}},
		"nothing in memory": {5, func(w *world, i addr.Virt) {},
			[]string{"0+1 a write of it failed"}},
		"nothing in it": {0, func(w *world, i addr.Virt) {}, nil},
		"a dirty page beside a clean one, and a gap": {3 * addr.PageSize, func(w *world, i addr.Virt) {
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{0: w.page(i, 0, clean, 'a'), 2: w.page(i, 2, good, 'c')}, 2))
		}, []string{"a[0,4096)", "c[8192,12288)", "1+1 a write of it failed"}},
		"the end is gone": {3 * addr.PageSize, func(w *world, i addr.Virt) {
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{0: w.page(i, 0, clean, 'a'), 1: w.page(i, 1, clean, 'b')}))
		}, []string{"a[0,4096)", "b[4096,8192)", "2+1 a write of it failed"}},
		"a page that was never filled": {3 * addr.PageSize, func(w *world, i addr.Virt) {
			w.head(i, w.page(i, 0, 0, 'a'))
			w.PutU32(i+inTreeFlags, 0x21)
		}, []string{"0+3 a write of it failed"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			at := w.file(12, "file", tc.size)
			tc.build(w, at)
			if head := w.u64(at + inHead); head&3 == 2 {
				w.PutU64(at+inPages, 3)
			}
			w.failed(at)
			w.Finish(types()...)
			c, s := w.open(t)
			for i, err := range c.Inodes(s) {
				if err != nil {
					t.Fatal(err)
				}
				if got := unsaved(c, s, i, w.Mem); !slices.Equal(got, tc.want) {
					t.Errorf("%q, want %q", got, tc.want)
				}
			}
		})
	}
}
