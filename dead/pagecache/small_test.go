package pagecache_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
)

// withSlots returns the types of a kernel whose nodes have n slots.
func withSlots(n uint32) []btf.Type {
	all := types()
	for _, t := range all {
		if s, ok := t.(*btf.Struct); ok && s.Name == "xa_node" {
			for i := range s.Members {
				if s.Members[i].Name == "slots" {
					word := &btf.Int{Name: "u8", Size: 1}
					s.Members[i].Type = &btf.Array{Index: word, Type: word, Nelems: 8 * n}
				}
			}
		}
	}
	return all
}

// TestSmallNodes reads trees whose nodes have 16 slots (CONFIG_BASE_SMALL).
func TestSmallNodes(t *testing.T) {
	const size = 100 * addr.PageSize
	for name, tc := range map[string]struct {
		build   func(w *world, i addr.Virt)
		unsaved []string
		held    int64 // bytes
	}{
		"one level": {func(w *world, i addr.Virt) {
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{1: w.page(i, 1, good, 'a'), 15: w.page(i, 15, 1<<pgUptodate, 'b')}, 1))
		}, []string{"a[4096,8192)"}, 2 * addr.PageSize},
		"two levels": {func(w *world, i addr.Virt) {
			top := w.node(i, 0, 0, 4, nil, 4)
			w.PutU64(top+ndSlots+4*8, uint64(2+w.node(i, top, 4, 0, map[int]addr.Virt{3: w.page(i, 67, good, 'a')}, 3)))
			w.head(i, 2+top)
		}, []string{"a[274432,278528)"}, addr.PageSize},
		"shifts of larger nodes": {func(w *world, i addr.Virt) {
			top := w.node(i, 0, 0, 6, nil, 1)
			w.PutU64(top+ndSlots+8, uint64(2+w.node(i, top, 1, 0, map[int]addr.Virt{3: w.page(i, 67, good, 'a')}, 3)))
			w.head(i, 2+top)
		}, []string{"0+100 damaged xarray"}, 0},
		"a mark of a slot that is not there": {func(w *world, i addr.Virt) {
			w.head(i, 2+w.node(i, 0, 0, 0, map[int]addr.Virt{1: w.page(i, 1, good, 'a')}, 1, 16))
		}, []string{"0+100 damaged xarray"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			file := w.file(9, "file", size)
			tc.build(w, file)
			w.PutU64(file+inPages, 1)
			w.Finish(withSlots(16)...)
			c, s := w.open(t)
			for i, err := range c.Inodes(s) {
				if err != nil {
					t.Fatal(err)
				}
				if i.Ino != 9 {
					continue
				}
				if got := unsaved(c, s, i, w.Mem); !slices.Equal(got, tc.unsaved) {
					t.Errorf("got %q, want %q", got, tc.unsaved)
				}
				var held int64
				for p, err := range c.Held(s, i) {
					if err == nil {
						held += p.Len()
					}
				}
				if held != tc.held {
					t.Errorf("%d bytes are held, not %d", held, tc.held)
				}
				return
			}
			t.Error("the file is not there")
		})
	}
}

// TestOtherNodes checks that nodes with another number of slots are refused, and not taken for missing.
func TestOtherNodes(t *testing.T) {
	w := newWorld(t)
	w.Finish(withSlots(32)...)
	k, err := kernel.Find(w)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pagecache.Open(k); err == nil || errors.Is(err, kernel.ErrNotFound) {
		t.Errorf("opened with nodes of 32 slots: %v", err)
	}
}
