package pagecache_test

import (
	"testing"

	"understudy.dev/understudy/dead/addr"
)

// TestUnmarked checks which missing or superfluous marks are noticed, because something else contradicts them.
func TestUnmarked(t *testing.T) {
	const clean = 1 << pgUptodate
	below := func(w *world, i addr.Virt, top, leaf []int) {
		n := w.node(i, 0, 0, 6, nil, top...)
		w.PutU64(n+ndSlots+8, uint64(2+w.node(i, n, 1, 0, map[int]addr.Virt{3: w.page(i, 67, good, 'a'), 4: w.page(i, 68, clean, 'b')}, leaf...)))
		w.head(i, 2+n)
	}
	for name, tc := range map[string]struct {
		build func(w *world, i addr.Virt)
		bad   bool
	}{
		"one page":        {func(w *world, i addr.Virt) { w.head(i, w.page(i, 0, good, 'a')) }, false},
		"all marked":      {func(w *world, i addr.Virt) { below(w, i, []int{1}, []int{3}) }, false},
		"a mark too many": {func(w *world, i addr.Virt) { below(w, i, []int{1}, []int{3, 4}) }, false},
		"no mark of a page": {func(w *world, i addr.Virt) {
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{1: w.page(i, 1, good, 'a'), 2: w.page(i, 2, good, 'b')}, 2))
		}, true},
		"no mark of a page under writeback": {func(w *world, i addr.Virt) {
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{1: w.page(i, 1, clean|1<<pgWriteback, 'a'), 2: w.page(i, 2, good, 'b')}, 2))
		}, true},
		"none at all": {func(w *world, i addr.Virt) {
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{1: w.page(i, 1, good, 'a')}))
		}, true},
		"a clean page": {func(w *world, i addr.Virt) {
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{1: w.page(i, 1, clean, 'a'), 2: 0x1235, 3: w.page(i, 3, good, 'b')}, 3))
		}, false},
		"the page of another file": {func(w *world, i addr.Virt) {
			other := w.file(77, "other", 4096)
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{1: w.page(other, 1, good, 'a'), 3: w.page(i, 3, good, 'b')}, 3))
		}, false},
		"no mark of a node":            {func(w *world, i addr.Virt) { below(w, i, nil, []int{3}) }, true},
		"a mark of a node without any": {func(w *world, i addr.Virt) { below(w, i, []int{1}, nil) }, true},
		"behind the end": {func(w *world, i addr.Virt) {
			n := w.node(i, 0, 0, 6, nil)
			w.PutU64(n+ndSlots+16, uint64(2+w.node(i, n, 2, 0, map[int]addr.Virt{3: w.page(i, 131, good, 'a')}, 3)))
			w.head(i, 2+n)
		}, false},
		"pages in an empty tree": {func(w *world, i addr.Virt) { w.PutU64(i+inPages, 1) }, true},
		"pages behind a shadow":  {func(w *world, i addr.Virt) { w.head(i, 0x1235) }, true},
		"only shadows": {func(w *world, i addr.Virt) {
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{1: 0x1235, 2: 0x1237}))
			w.PutU32(i+inTreeFlags, 0x21)
		}, false},
		"a node that contains itself": {func(w *world, i addr.Virt) {
			n := w.node(i, 0, 0, 6, nil, 0)
			w.PutU64(n+ndSlots, uint64(2+n))
			w.head(i, 2+n)
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.file(12, "f", 100*addr.PageSize)
			tree := w.file(13, "g", 100*addr.PageSize)
			tc.build(w, tree)
			w.Finish(types()...)
			if pages := w.u64(tree + inHead); pages != 0 && name != "pages in an empty tree" && name != "only shadows" {
				w.PutU64(tree+inPages, 1)
			}
			c, s := w.open(t)
			for i, err := range c.Inodes(s) {
				if err != nil {
					t.Fatal(err)
				}
				if i.Ino != 13 {
					continue
				}
				if err := c.Unmarked(i); (err != nil) != tc.bad {
					t.Errorf("%v", err)
				}
				return
			}
			t.Error("no inode 13")
		})
	}
}
