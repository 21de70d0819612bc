package pagecache_test

import (
	"slices"
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

// TestOrder checks that a large folio is read the same from kernels that keep its order in different places.
func TestOrder(t *testing.T) {
	u8, u64 := &btf.Int{Name: "u8", Size: 1}, &btf.Int{Name: "u64", Size: 8}
	const inPage = pgOrder - kerneltest.PageStruct
	for name, tc := range map[string]struct {
		folio  *btf.Struct // nil: there is none
		inPage bool
	}{
		"before 5.16": {nil, true},
		"5.16 to 6.0": {&btf.Struct{Name: "folio", Size: kerneltest.PageStruct, Members: []btf.Member{field("flags", 0, u64)}}, true},
		"6.1 to 6.5":  {&btf.Struct{Name: "folio", Size: 2 * kerneltest.PageStruct, Members: []btf.Member{field("_folio_order", pgOrder, u8)}}, false},
		"since 6.6":   {&btf.Struct{Name: "folio", Size: 2 * kerneltest.PageStruct, Members: []btf.Member{field("_flags_1", pgOrder, u64)}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			all := slices.DeleteFunc(types(), func(t btf.Type) bool { return t.TypeName() == "folio" })
			if tc.folio != nil {
				all = append(all, tc.folio)
			}
			for _, t := range all {
				if s, ok := t.(*btf.Struct); ok && s.Name == "page" && tc.inPage {
					s.Members = append(s.Members, field("compound_order", inPage, u8))
				}
			}
			w := newWorld(t)
			file := w.file(20, "file", 100*addr.PageSize)
			w.head(file, 2+w.node(file, 0, 0, 0, map[int]addr.Virt{8: w.folio(file, 8, 2, 'a'), 9: 8<<2 | 2, 10: 8<<2 | 2, 11: 8<<2 | 2}, 8))
			w.PutU64(file+inPages, 4)
			w.Finish(all...)
			w.checkUnsaved(t, []string{"a[32768,49152)"})
		})
	}
}
