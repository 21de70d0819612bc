package kernel_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

// sectionPages is how many frames a section has in these tests: two sections are all memory.
const sectionPages = kerneltest.Size / addr.PageSize / 2

// sectioned returns a kernel without CONFIG_SPARSEMEM_VMEMMAP, before it is finished, and where its table of
// sections is. The page structures of its second section lie below those of the first.
func sectioned(t testing.TB) (*kerneltest.Machine, addr.Virt) {
	m := kerneltest.Fixed(t, kerneltest.DirectMap)
	m.PutU64(m.Image("vmemmap_base", 8), uint64(kerneltest.MemMap+1<<40))
	roots, table := m.Alloc(2*8), m.Alloc(addr.PageSize)
	m.PutU64(roots, uint64(table))
	const size = sectionPages * kerneltest.PageStruct
	m.PutU64(table, uint64(kerneltest.MemMap+size)|3)
	m.PutU64(table+16, uint64(kerneltest.MemMap-size)|3) // less its first frame
	m.Lines = fmt.Sprintf("SYMBOL(mem_section)=%x\nLENGTH(mem_section)=2\nNUMBER(SECTION_SIZE_BITS)=22\n", uint64(roots))
	return m, table
}

var sectionType = &btf.Struct{Name: "mem_section", Size: 16, Members: []btf.Member{{Name: "section_mem_map", Type: &btf.Int{Name: "u64", Size: 8}}}}

func TestSections(t *testing.T) {
	m, _ := sectioned(t)
	m.Finish(pageType, sectionType)
	k, err := kernel.Find(m)
	if err != nil {
		t.Fatal(err)
	}
	for pfn, want := range map[addr.PFN]addr.Virt{
		0:                sectionPages * kerneltest.PageStruct,
		sectionPages - 1: (2*sectionPages - 1) * kerneltest.PageStruct,
		sectionPages:     0,
		sectionPages + 7: 7 * kerneltest.PageStruct,
	} {
		at := k.PageStruct(pfn)
		if got, err := k.PageFrame(at); at != kerneltest.MemMap+want || got != pfn || err != nil {
			t.Errorf("frame %d is at %v, which is of %d, %v", pfn, at, got, err)
		}
	}
	for _, at := range []addr.Virt{0, kerneltest.MemMap - 64, kerneltest.MemMap + 1, kerneltest.MemMap + 2*sectionPages*kerneltest.PageStruct} {
		if pfn, err := k.PageFrame(at); err == nil {
			t.Errorf("%v is of frame %d", at, pfn)
		}
	}
	if at := k.PageStruct(2 * sectionPages); at != 0 {
		t.Errorf("absent memory has %v", at)
	}
}

func TestSectionsDamaged(t *testing.T) {
	for name, damage := range map[string]func(m *kerneltest.Machine, table addr.Virt){
		"without structures": func(m *kerneltest.Machine, table addr.Virt) { m.PutU64(table, 1) },
		"in one place": func(m *kerneltest.Machine, table addr.Virt) {
			m.PutU64(table+16, uint64(kerneltest.MemMap)|3)
		},
		"of a program": func(m *kerneltest.Machine, table addr.Virt) { m.PutU64(table, 0x1003) },
		"not mapped":   func(m *kerneltest.Machine, table addr.Virt) { m.PutU64(table, uint64(kerneltest.MemMap+1<<40)|3) },
		"of no size": func(m *kerneltest.Machine, _ addr.Virt) {
			m.Lines = strings.Replace(m.Lines, "BITS)=22", "BITS)=12", 1)
		},
		"of a wild one": func(m *kerneltest.Machine, _ addr.Virt) {
			m.Lines = strings.Replace(m.Lines, "BITS)=22", "BITS)=63", 1)
		},
		"no table": func(m *kerneltest.Machine, _ addr.Virt) { m.Lines = "" },
	} {
		m, table := sectioned(t)
		damage(m, table)
		m.Finish(pageType, sectionType)
		if _, err := kernel.Find(m); err == nil || !strings.Contains(err.Error(), "CONFIG_SPARSEMEM_VMEMMAP") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzSections checks that, whatever a table of sections holds, the page structure that is found to be of a
// frame is the one that the frame has.
func FuzzSections(f *testing.F) {
	f.Add(uint64(kerneltest.MemMap)|3, uint64(0), uint64(kerneltest.MemMap))
	m, table := sectioned(f)
	m.Finish(pageType, sectionType)
	f.Fuzz(func(t *testing.T, first, second, va uint64) {
		m := m.Clone(t)
		m.PutU64(table, first)
		m.PutU64(table+16, second)
		k, err := kernel.Find(m)
		if err != nil {
			return
		}
		if pfn, err := k.PageFrame(addr.Virt(va)); err == nil && k.PageStruct(pfn) != addr.Virt(va) {
			t.Errorf("%#x is of frame %d, which has %v", va, pfn, k.PageStruct(pfn))
		}
	})
}
