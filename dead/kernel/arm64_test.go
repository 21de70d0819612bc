package kernel_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

// lists is a kernel with the structures by which lists are found whose heads have no symbols.
// Two file systems are mounted, and one module has types.
func lists(m *kerneltest.Machine) (*kerneltest.Machine, map[string]addr.Virt) {
	u32, u64 := &btf.Int{Name: "u32", Size: 4}, &btf.Int{Name: "u64", Size: 8}
	list := &btf.Struct{Name: "list_head", Size: 16, Members: []btf.Member{{Name: "next", Type: u64}, {Name: "prev", Type: u64, Offset: 64}}}
	one := func(name string, size, off uint32, member string, t btf.Type) btf.Type {
		return &btf.Struct{Name: name, Size: size, Members: []btf.Member{{Name: member, Type: t, Offset: btf.Bits(8 * off)}}}
	}
	path := &btf.Struct{Name: "path", Size: 16, Members: []btf.Member{{Name: "mnt", Type: u64}}}
	text := &btf.Array{Index: u32, Type: &btf.Int{Name: "char", Size: 1}, Nelems: 56}
	pair := func(at, next, prev addr.Virt) {
		m.PutU64(at, uint64(next))
		m.PutU64(at+8, uint64(prev))
	}
	task, fs, mount := m.Image("init_task", 64), m.Alloc(64), m.Alloc(64)
	head, first, second := m.Image("super_blocks", 16), m.Alloc(128), m.Alloc(128)
	m.PutU64(task+8, uint64(fs))
	m.PutU64(fs+16, uint64(mount))
	m.PutU64(mount+8, uint64(first))
	pair(head, first+16, second+16)
	pair(first+16, second+16, head)
	pair(second+16, head, first+16)
	types, entry, module, data := m.Image("btf_modules", 16), m.Alloc(64), m.Alloc(128), m.Alloc(64)
	pair(types, entry, entry)
	pair(entry, types, types)
	m.PutU64(entry+24, uint64(module))
	m.PutU64(module, uint64(data))
	m.PutU32(module+8, 24)
	m.Put(module+16, []byte("some_module"))
	m.Put(data, []byte{0x9f, 0xeb, 1, 0, 24})
	m.Finish(
		&btf.Struct{Name: "page", Size: kerneltest.PageStruct, Members: []btf.Member{{Name: "flags", Type: u32}}},
		one("task_struct", 64, 8, "fs", u64), one("fs_struct", 64, 16, "root", path),
		one("vfsmount", 64, 8, "mnt_sb", u64), one("super_block", 128, 16, "s_list", list),
		&btf.Struct{Name: "btf_module", Size: 64, Members: []btf.Member{{Name: "list", Type: list}, {Name: "btf", Type: u64, Offset: 24 * 8}}},
		&btf.Struct{Name: "btf", Size: 128, Members: []btf.Member{
			{Name: "data", Type: u64}, {Name: "data_size", Type: u32, Offset: 64}, {Name: "name", Type: text, Offset: 128}}},
	)
	return m, map[string]addr.Virt{"super_blocks": head, "btf_modules": types, "init_task": task}
}

var hidden = []string{"super_blocks", "btf_modules", "panic_cpu"}

func TestMadeUpARM64(t *testing.T) {
	for _, functions := range []bool{false, true} {
		m := kerneltest.NewARM64(t)
		m.Functions, m.Hidden = functions, hidden
		m, want := lists(m)
		checkMadeUp(t, fmt.Sprintf("functions only: %v", functions), m, "aarch64", want)
	}
	for _, unit := range []addr.Pages{addr.Pages16K, addr.Pages64K} {
		m, want := lists(kerneltest.NewPages(t, unit))
		checkMadeUp(t, fmt.Sprintf("pages of %d", unit.Size()), m, "aarch64", want)
	}
	m := kerneltest.New(t)
	m.Functions, m.Hidden = true, hidden
	m, want := lists(m)
	checkMadeUp(t, "x86-64 with functions only", m, "x86_64", want)
}

func checkMadeUp(t *testing.T, name string, m *kerneltest.Machine, machine string, want map[string]addr.Virt) {
	t.Helper()
	k, err := kernel.Find(m)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	levels := 4
	if k.Pages() == addr.Pages64K {
		levels = 3
	}
	if k.Release != "9.9.9-made-up" || k.Architecture() != machine || !strings.HasPrefix(k.Banner, "Linux version") || k.PagingLevels() != levels {
		t.Errorf("%s: %q, %q, %s, %d", name, k.Release, k.Banner, k.Architecture(), k.PagingLevels())
	}
	if err := k.StillThere(); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	at := m.Alloc(addr.PageSize)
	if pfn, err := k.PageFrame(m.Page(at)); err != nil || pfn != k.Pages().PFN(m.Phys(at)) || k.PageStruct(pfn) != m.Page(at) {
		t.Errorf("%s: frame %v, %v", name, pfn, err)
	}
	if pa, err := k.Physical(at); err != nil || pa != m.Phys(at) {
		t.Errorf("%s: %v is at %v, %v", name, at, pa, err)
	}
	for symbol, want := range want {
		if at, err := k.Symbol(symbol); err != nil || at != want {
			t.Errorf("%s: %s is at %v, not %v, %v", name, symbol, at, want, err)
		}
	}
	if _, err := k.Module("some_module"); errors.Is(err, kernel.ErrNotFound) { // it is found, but its types are not valid
		t.Errorf("%s: %v", name, err)
	}
	if _, err := k.Symbol("absent"); !errors.Is(err, kernel.ErrNotFound) {
		t.Errorf("%s: %v", name, err)
	}
}

// TestStillThereARM64 checks that another boot of the same kernel is noticed.
func TestStillThereARM64(t *testing.T) {
	m, _ := lists(kerneltest.NewARM64(t))
	k, err := kernel.Find(m)
	if err != nil {
		t.Fatal(err)
	}
	at, err := k.Symbol("memstart_addr")
	if err != nil {
		t.Fatal(err)
	}
	m.PutU64(at, 0)
	if err := k.StillThere(); !errors.Is(err, kernel.ErrGone) {
		t.Error(err)
	}
}

// FuzzFindARM64 damages the memory of a kernel whose symbol table has only functions. It checks that the
// kernel is still found and can be read, or that there is an error; nothing panics or hangs.
func FuzzFindARM64(f *testing.F) {
	f.Add([]byte("\x00\x00\x30\x00\xff\x01"), uint64(kerneltest.MemMap))
	f.Add([]byte("\x00\x10\x10\x00\xff\x01"), uint64(1<<64-1))
	m := kerneltest.NewARM64(f)
	m.Functions, m.Hidden = true, hidden
	whole, _ := lists(m)
	f.Fuzz(func(t *testing.T, script []byte, va uint64) {
		m := whole.Clone(t)
		m.Damage(script)
		k, err := kernel.Find(m)
		if err != nil {
			return
		}
		k.Bytes(addr.Virt(va), 5000)
		k.PageFrame(addr.Virt(va))
		k.StillThere()
		for _, name := range []string{"super_blocks", "btf_modules", "tk_core", "init_task"} {
			k.Symbols(name)
		}
		k.Module("some_module")
	})
}
