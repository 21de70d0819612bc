package kernel_test

import (
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

var pageType = &btf.Struct{Name: "page", Size: kerneltest.PageStruct, Members: []btf.Member{{Name: "flags", Type: &btf.Int{Name: "u32", Size: 4}}}}

// TestFixedLayout finds kernels without variables for where memory and its page structures are
// mapped.
func TestFixedLayout(t *testing.T) {
	set := func(m *kerneltest.Machine, name string, v addr.Virt) { m.PutU64(m.Image(name, 8), uint64(v)) }
	for name, tc := range map[string]struct {
		direct addr.Virt
		build  func(m *kerneltest.Machine)
		want   string // in the error; empty means that the kernel is found
	}{
		"neither":                   {kerneltest.DirectMap, func(*kerneltest.Machine) {}, ""},
		"elsewhere, and not told":   {kerneltest.DirectMap + 1<<40, func(*kerneltest.Machine) {}, "the direct map has"},
		"page structures elsewhere": {kerneltest.DirectMap, func(m *kerneltest.Machine) { set(m, "vmemmap_base", kerneltest.MemMap+1<<40) }, "CONFIG_SPARSEMEM_VMEMMAP"},
		"elsewhere, and told":       {kerneltest.DirectMap + 1<<40, func(m *kerneltest.Machine) { set(m, "page_offset_base", kerneltest.DirectMap+1<<40) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			m := kerneltest.Fixed(t, tc.direct)
			tc.build(m)
			m.Finish(pageType)
			k, err := kernel.Find(m)
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("found with %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if pfn, err := k.PageFrame(k.PageStruct(7)); pfn != 7 || err != nil {
				t.Errorf("page 7 is of frame %d, %v", pfn, err)
			}
			if err := k.StillThere(); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTimekeeper checks what may come before a timekeeper: a sequence counter, which is larger if
// locks are debugged, or under PREEMPT_RT.
func TestTimekeeper(t *testing.T) {
	counter := func(size uint32) btf.Type { return &btf.Struct{Name: "seqcount_raw_spinlock", Size: size} }
	keeper := &btf.Struct{Name: "timekeeper", Size: 64}
	data := &btf.Struct{Name: "tk_data", Size: 128, Members: []btf.Member{{Name: "timekeeper", Type: keeper, Offset: 24 * 8}}}
	for name, tc := range map[string]struct {
		types []btf.Type
		want  addr.Virt
	}{
		"no type of the counter": {nil, 8},
		"a number":               {[]btf.Type{counter(4)}, 8},
		"and a pointer":          {[]btf.Type{counter(16)}, 16},
		"and what debugs it":     {[]btf.Type{counter(60)}, 64},
		"a type with a name":     {[]btf.Type{counter(60), data}, 24},
	} {
		for _, symbol := range []string{"tk_core", "timekeeper_data"} {
			m := kerneltest.New(t)
			core := m.Image(symbol, 256)
			m.Finish(append(tc.types, pageType)...)
			k, err := kernel.Find(m)
			if err != nil {
				t.Fatal(err)
			}
			if at, err := k.Timekeeper(); at != core+tc.want || err != nil {
				t.Errorf("%s in %s: %v, not %v: %v", name, symbol, at, core+tc.want, err)
			}
		}
	}
}

// TestNoTypes checks that a kernel without its own types is refused, and that the error says why, and
// what to do.
func TestNoTypes(t *testing.T) {
	for _, functions := range []bool{false, true} {
		m := kerneltest.New(t)
		m.Functions = functions
		m.FinishWithoutTypes()
		if _, err := kernel.Find(m); err == nil || !strings.Contains(err.Error(), "CONFIG_DEBUG_INFO_BTF=y") {
			t.Errorf("only functions in its symbol table: %v: found with %v", functions, err)
		}
	}
}

// TestOrder checks that a kernel whose types have another order of members than its structures is refused
// for that reason, and that one in which only the name of the first task is damaged is not.
func TestOrder(t *testing.T) {
	for name, tt := range map[string]struct {
		comm, magic string
		refused     bool
	}{
		"right":                 {"swapper/0", "6.1.0 SMP preempt mod_unload ", false},
		"damaged":               {"swbpper/0", "6.1.0 SMP preempt mod_unload ", false},
		"another order":         {"\x00\x01", "6.1.0 mod_unload RANDSTRUCT_1f2e", true},
		"right order, by clang": {"swapper", "6.1.0 mod_unload RANDSTRUCT_1f2e", false},
		"without modules":       {"\x00\x01", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			m := kerneltest.New(t)
			char := &btf.Int{Name: "char", Size: 1}
			comm := &btf.Array{Index: &btf.Int{Name: "u32", Size: 4}, Type: char, Nelems: 16}
			task := &btf.Struct{Name: "task_struct", Size: 64, Members: []btf.Member{{Name: "comm", Type: comm, Offset: 16 * 8}}}
			m.Put(m.Image("init_task", 64)+16, []byte(tt.comm))
			if tt.magic != "" {
				m.Put(m.Image("vermagic", 128), []byte(tt.magic))
			}
			m.Finish(pageType, task)
			_, err := kernel.Find(m)
			if refused := err != nil && strings.Contains(err.Error(), "CONFIG_RANDSTRUCT"); refused != tt.refused || err != nil && !refused {
				t.Errorf("found with %v", err)
			}
		})
	}
}
