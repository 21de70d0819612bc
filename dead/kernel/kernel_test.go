package kernel_test

import (
	"errors"
	"iter"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

func small(t testing.TB) *kerneltest.Machine {
	u32 := &btf.Int{Name: "u32", Size: 4}
	m := kerneltest.New(t)
	m.Image("twice", 8)
	m.Image("twice", 8)
	m.Finish(
		&btf.Struct{Name: "page", Size: kerneltest.PageStruct, Members: []btf.Member{{Name: "flags", Type: u32}}},
		&btf.Struct{Name: "outer", Size: 16, Members: []btf.Member{
			{Name: "a", Type: u32},
			{Type: &btf.Union{Size: 8, Members: []btf.Member{
				{Name: "b", Type: u32},
				{Type: &btf.Struct{Size: 8, Members: []btf.Member{{Name: "c", Type: u32}, {Name: "d", Type: u32, Offset: 32}}}},
			}}, Offset: 64},
		}},
		&btf.Enum{Name: "color", Size: 4, Values: []btf.EnumValue{{Name: "RED", Value: 7}}},
	)
	return m
}

func TestFind(t *testing.T) {
	k, err := kernel.Find(small(t))
	if err != nil {
		t.Fatal(err)
	}
	if k.Release != "9.9.9-made-up" {
		t.Errorf("release %q", k.Release)
	}
	if err := k.StillThere(); err != nil {
		t.Error(err)
	}
	if _, err := k.Symbol("absent"); !errors.Is(err, kernel.ErrNotFound) {
		t.Errorf("absent symbol: %v", err)
	}
	if _, err := k.Symbol("twice"); !errors.Is(err, kernel.ErrAmbiguous) {
		t.Errorf("double symbol: %v", err)
	}
	if _, panicked, err := k.PanicCPU(); panicked || err != nil {
		t.Errorf("panicked: %v, %v", panicked, err)
	}
	l := k.Types().Layout("outer")
	if f := l.Field("d", 4); f != (kernel.Field{Off: 12, Size: 4}) || l.Err() != nil {
		t.Errorf("outer.d: %v, %v", f, l.Err())
	}
	if l.Field("d", 8); l.Err() == nil {
		t.Error("a wrong size was accepted")
	}
	if l := k.Types().Layout("absent"); !errors.Is(l.Err(), kernel.ErrNotFound) {
		t.Errorf("absent struct: %v", l.Err())
	}
	if v, err := k.Types().Enum("color", "RED"); v != 7 || err != nil {
		t.Errorf("RED: %d, %v", v, err)
	}
}

// TestThinLTO checks that a static variable that clang made global for its link is found by its own name.
// If there are two, the name is ambiguous.
func TestThinLTO(t *testing.T) {
	m := kerneltest.New(t)
	want := m.Image("super_blocks.llvm.123456", 16)
	for _, name := range []string{"two.llvm.1", "two.llvm.2", "other", "other.llvm.3", "llvm.4"} {
		m.Image(name, 8)
	}
	m.Finish(pageType)
	k, err := kernel.Find(m)
	if err != nil {
		t.Fatal(err)
	}
	if at, err := k.Symbol("super_blocks"); at != want || err != nil {
		t.Errorf("%v, %v; want %v", at, err, want)
	}
	for name, want := range map[string]error{"two": kernel.ErrAmbiguous, "other": kernel.ErrAmbiguous, "llvm.4": nil, "super": kernel.ErrNotFound} {
		if at, err := k.Symbol(name); !errors.Is(err, want) {
			t.Errorf("%s: %v, %v", name, at, err)
		}
	}
}

// noted is a machine whose dump has a note. It counts the searches of its memory
// for one.
type noted struct {
	*kerneltest.Machine
	note    string
	scanned *int
}

func (n noted) VMCoreInfo() ([]byte, bool) { return []byte(n.note), n.note != "" }

func (n noted) Touched(r addr.PhysRange) iter.Seq[addr.PhysRange] {
	*n.scanned++
	return func(yield func(addr.PhysRange) bool) { yield(r) }
}

// TestFindByNoteOfFile checks that the note of a dump is used if it is that of the
// kernel in memory, and is not trusted if it is not.
func TestFindByNoteOfFile(t *testing.T) {
	m := small(t)
	for name, tc := range map[string]struct {
		note  string
		scans int
	}{
		"the same":         {m.Note, 0},
		"after a crash":    {m.Note + "CRASHTIME=1700000000\n\x00\x00", 0},
		"none":             {"", 1},
		"garbage":          {"garbage", 1},
		"another release":  {strings.Replace(m.Note, "OSRELEASE=9", "OSRELEASE=8", 1), 1},
		"one line more":    {m.Note + "SIZE(page)=64\n", 1},
		"wrong addresses":  {strings.Replace(m.Note, "SYMBOL(swapper_pg_dir)=ffffffffa1", "SYMBOL(swapper_pg_dir)=ffffffffb1", 1), 1},
		"of another start": {strings.Replace(m.Note, "NUMBER(phys_base)=", "NUMBER(phys_base)=1", 1), 1},
	} {
		scanned := 0
		k, err := kernel.Find(noted{m, tc.note, &scanned})
		if err != nil || scanned != tc.scans {
			t.Errorf("%s: looked through memory %d times, %v", name, scanned, err)
			continue
		}
		if err := k.StillThere(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	dumps := kerneltest.New(t)
	dumps.PutU64(dumps.Image("elfcorehdr_addr", 8), 0x3000_0000)
	dumps.Finish(&btf.Struct{Name: "page", Size: kerneltest.PageStruct})
	scanned := 0
	if _, err := kernel.Find(noted{dumps, dumps.Note, &scanned}); err != nil || scanned != 1 {
		t.Errorf("of a kernel that dumps another: looked through memory %d times, %v", scanned, err)
	}
	empty := 0
	_, err := kernel.Find(noted{kerneltest.New(t), m.Note, &empty})
	if !errors.Is(err, kernel.ErrNoKernel) || !strings.Contains(err.Error(), "note of the file") {
		t.Errorf("without a kernel: %v", err)
	}
}

func TestReads(t *testing.T) {
	m := small(t)
	at := m.Alloc(2 * addr.PageSize)
	// Mapped in reverse, the two pages are not contiguous.
	const elsewhere addr.Virt = 0xffff_c900_0000_0000
	m.Map(elsewhere, m.Phys(at)+addr.PageSize, addr.PageSize)
	m.Map(elsewhere+addr.PageSize, m.Phys(at), addr.PageSize)
	m.Put(at+2*addr.PageSize-4, []byte("over"))
	m.Put(at, []byte("lap\x00"))
	k, err := kernel.Find(m)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := k.CString(elsewhere+addr.PageSize-4, 16); s != "overlap" || err != nil {
		t.Errorf("string over two pages: %q, %v", s, err)
	}
	if s, err := k.CString(elsewhere+addr.PageSize-4, 6); err == nil {
		t.Errorf("string longer than its limit: %q", s)
	}
	if b, err := k.Bytes(elsewhere+addr.PageSize-4, 8); string(b) != "overlap\x00" || err != nil {
		t.Errorf("bytes over two pages: %q, %v", b, err)
	}
	var unmapped *kernel.Unmapped
	if _, err := k.U64(elsewhere + 2*addr.PageSize - 4); !errors.As(err, &unmapped) || unmapped.Addr != elsewhere+2*addr.PageSize {
		t.Errorf("half unmapped: %v", err)
	}
	var fault *ram.Fault
	if _, err := k.U64(kerneltest.DirectMap + kerneltest.Size - 4); err == nil {
		t.Error("read beyond memory")
	} else if !errors.As(err, &fault) && !errors.As(err, &unmapped) {
		t.Errorf("read beyond memory: %v", err)
	}
	for _, va := range []addr.Virt{0, 0x1000, 0x8000_0000_0000_0000, ^addr.Virt(0)} {
		if _, err := k.U64(va); err == nil {
			t.Errorf("read at %v", va)
		}
	}
	page := m.Page(at)
	if pfn, err := k.PageFrame(page); err != nil || pfn != k.Pages().PFN(m.Phys(at)) || k.PageStruct(pfn) != page {
		t.Errorf("frame of page: %v, %v", pfn, err)
	}
	if _, err := k.PageFrame(page + 1); err == nil {
		t.Error("frame of no page")
	}
	if _, err := k.PageFrame(m.Page(kerneltest.DirectMap+kerneltest.Size-1) + kerneltest.PageStruct); !errors.As(err, &fault) {
		t.Errorf("frame of absent page: %v", err)
	}
}

func TestStillThere(t *testing.T) {
	for name, change := range map[string]func(m *kerneltest.Machine, k *kernel.Kernel){
		"another layout": func(m *kerneltest.Machine, k *kernel.Kernel) {
			va, _ := k.Symbol("vmemmap_base")
			m.PutU64(va, uint64(kerneltest.MemMap)+1<<30)
		},
		"another banner": func(m *kerneltest.Machine, k *kernel.Kernel) {
			va, _ := k.Symbol("linux_banner")
			m.Put(va, []byte("Windows"))
		},
		"another note": func(m *kerneltest.Machine, k *kernel.Kernel) { m.Mem[0x30_0020]++ },
	} {
		m := small(t)
		k, err := kernel.Find(m)
		if err != nil {
			t.Fatal(err)
		}
		change(m, k)
		if err := k.StillThere(); !errors.Is(err, kernel.ErrGone) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNoKernel(t *testing.T) {
	m := kerneltest.New(t)
	if _, err := kernel.Find(m); !errors.Is(err, kernel.ErrNoKernel) {
		t.Error(err)
	}
}

// FuzzFind damages the memory of a kernel. It checks that the kernel is still found and
// can be read, or that there is an error; nothing panics or hangs.
func FuzzFind(f *testing.F) {
	f.Add([]byte("\x00\x00\x30\x00\xff\x01"), uint64(kerneltest.MemMap))
	f.Add([]byte("\x00\x10\x10\x00\xff\x01"), uint64(kerneltest.DirectMap))
	whole := small(f)
	f.Fuzz(func(t *testing.T, script []byte, va uint64) {
		m := whole.Clone(t)
		m.Damage(script)
		k, err := kernel.Find(m)
		if err != nil {
			return
		}
		k.Bytes(addr.Virt(va), 5000)
		k.CString(addr.Virt(va), 300)
		k.PageFrame(addr.Virt(va))
		k.PanicCPU()
		k.StillThere()
		for range k.Log() {
		}
		k.Symbols("init_uts_ns")
		l := k.Types().Layout("outer")
		if d := l.Field("d"); l.Err() == nil && d.Off+d.Size > l.Size {
			t.Errorf("field %v lies outside of its %d bytes", d, l.Size)
		}
	})
}
