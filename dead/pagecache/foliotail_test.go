package pagecache_test

import (
	"slices"
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

// shortFolio are the types of Linux 5.16 to 6.0: struct folio is of one page, and the order of a
// large one in struct page, of the page after the first.
func shortFolio() []btf.Type {
	u8, all := &btf.Int{Name: "u8", Size: 1}, types()
	for _, t := range all {
		s, ok := t.(*btf.Struct)
		if !ok {
			continue
		}
		switch s.Name {
		case "folio":
			s.Size = kerneltest.PageStruct
			s.Members = []btf.Member{{Name: "page", Type: &btf.Array{Index: u8, Type: u8, Nelems: kerneltest.PageStruct}}}
		case "page":
			s.Members = append(s.Members, field("compound_order", pgOrder-kerneltest.PageStruct, u8))
		}
	}
	return all
}

func TestShortFolio(t *testing.T) {
	w := newWorld(t)
	file := w.file(17, "file", 12<<12)
	w.head(file, 2+w.node(file, 0, 0, 0, map[int]addr.Virt{8: w.folio(file, 8, 2, 'a'), 9: 8<<2 | 2, 10: 8<<2 | 2, 11: 8<<2 | 2}, 8))
	w.Finish(shortFolio()...)
	w.PutU64(file+inPages, 1)
	c, s := w.open(t)
	n := 0
	for i, err := range c.Dirty(s) {
		n++
		if err != nil {
			t.Fatal(err)
		}
		if got, want := unsaved(c, s, i, w.Mem), []string{"a[32768,49152)"}; !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if n != 1 {
		t.Errorf("%d inodes instead of one", n)
	}
}
