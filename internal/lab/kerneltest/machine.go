// Package kerneltest builds the memory of a machine with a small made-up kernel
// in it, byte by byte, for tests of what reads kernels from memory. Its layouts
// are unlike those of any real kernel on purpose.
package kerneltest

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ram"
)

// Size of the machine's memory, in bytes.
const Size = 8 << 20

// Addresses and sizes. DirectMap and MemMap are where the made-up kernel maps its
// physical memory and its page structures.
const (
	startKernelMap addr.Virt = 0xffff_ffff_8000_0000
	imageVirt      addr.Virt = 0xffff_ffff_a1000000
	imagePhys      addr.Phys = 0x10_0000
	imageSize                = 0x20_0000
	DirectMap      addr.Virt = 0xffff_8880_0000_0000
	MemMap         addr.Virt = 0xffff_ea00_0000_0000
	heapPhys       addr.Phys = 0x40_0000
	tablesPhys     addr.Phys = 0x70_0000
	notePhys       addr.Phys = 0x30_0000
	memMapPhys     addr.Phys = 0x31_0000
	// PageStruct is the size of struct page, in bytes.
	PageStruct = 64
)

// Machine is memory under construction. It is a ram.Memory.
type Machine struct {
	t       testing.TB
	Mem     []byte
	Note    string    // text of the VMCOREINFO note, once finished
	image   addr.Virt // next free place in the image
	heap    addr.Phys // next free place in the heap
	tables  addr.Phys // next free page table
	root    addr.Phys
	symbols []symbol
	arm64   bool
	unit    addr.Pages // of its base pages
	direct  addr.Virt  // where memory is mapped in one piece
	// Functions makes Finish put only functions into the symbol table, and export all
	// other symbols except Hidden, as a kernel without CONFIG_KALLSYMS_ALL does.
	Functions bool
	Hidden    []string
	Lines     string // further lines of the note
}

type symbol struct {
	name string
	at   addr.Virt
}

// New starts a machine of x86-64: page tables, and the base addresses of its layout.
func New(t testing.TB) *Machine {
	m := Fixed(t, DirectMap)
	m.PutU64(m.Image("page_offset_base", 8), uint64(m.direct))
	m.PutU64(m.Image("vmemmap_base", 8), uint64(MemMap))
	return m
}

// Fixed starts a machine of x86-64 whose kernel has no variables for the base addresses
// of its layout, and maps its physical memory at direct. If that is DirectMap, it is like
// a kernel that cannot move them.
func Fixed(t testing.TB, direct addr.Virt) *Machine {
	return start(t, &Machine{direct: direct, unit: addr.Pages4K}, "init_top_pgt")
}

// The layout of a machine of arm64, with addresses of 48 bits: its linear map begins that
// many bytes below its memory.
const (
	below                 = 1 << 46
	linearStart addr.Virt = 0xffff_0000_0000_0000
)

// NewARM64 starts a machine of arm64 with base pages of 4 KiB. The descriptors in its
// page tables have the same bits as the entries of x86-64.
func NewARM64(t testing.TB) *Machine { return NewPages(t, addr.Pages4K) }

// NewPages starts a machine of arm64 with base pages of the given size.
func NewPages(t testing.TB, unit addr.Pages) *Machine {
	m := start(t, &Machine{arm64: true, direct: linearStart + below, unit: unit}, "swapper_pg_dir")
	m.PutU64(m.Image("memstart_addr", 8), 1<<64-below)
	return m
}

func start(t testing.TB, m *Machine, root string) *Machine {
	m.t, m.Mem, m.image, m.heap, m.tables = t, make([]byte, Size), imageVirt, heapPhys, tablesPhys
	m.Image("_stext", 8)
	m.root = imagePhys + addr.Phys(m.Image(root, int(m.unit.Size()))-imageVirt)
	m.Map(imageVirt, imagePhys, imageSize)
	m.Map(m.direct, 0, Size)
	m.Map(MemMap, memMapPhys, Size>>m.unit*PageStruct)
	m.PutU64(m.Image("vmcoreinfo_note", 8), uint64(m.direct)+uint64(notePhys))
	m.Put(m.Image("linux_banner", 64), []byte("Linux version 9.9.9-made-up (by hand) #1 of all\n\x00"))
	uts := m.Image("init_uts_ns", 512)
	m.Put(uts+2*65, []byte("9.9.9-made-up\x00"))
	m.Put(uts+3*65, []byte("#1 of all\x00"))
	m.PutU32(m.Image("panic_cpu", 8), 0xffff_ffff)
	return m
}

// Image reserves n zeroed bytes of the kernel image under a name.
func (m *Machine) Image(name string, n int) addr.Virt {
	align := addr.Virt(63)
	if n >= addr.PageSize {
		align = addr.Virt(m.unit.Size() - 1)
	}
	at := (m.image + align) &^ align
	m.image = at + addr.Virt(n)
	if m.image > imageVirt+imageSize {
		m.t.Fatal("kerneltest: image is full")
	}
	m.symbols = append(m.symbols, symbol{name, at})
	return at
}

// PageSize is that of the kernel's base pages, in bytes.
func (m *Machine) PageSize() int { return int(m.unit.Size()) }

// Alloc reserves n zeroed bytes of the heap.
func (m *Machine) Alloc(n int) addr.Virt {
	align := addr.Phys(63)
	if n >= addr.PageSize {
		align = addr.Phys(m.unit.Size() - 1)
	}
	at := (m.heap + align) &^ align
	m.heap = at + addr.Phys(n)
	if m.heap > tablesPhys {
		m.t.Fatal("kerneltest: heap is full")
	}
	return m.direct + addr.Virt(at)
}

// Phys returns the physical address of an address in the image, the heap or the map of pages.
func (m *Machine) Phys(va addr.Virt) addr.Phys {
	switch {
	case va >= imageVirt && va < imageVirt+imageSize:
		return imagePhys + addr.Phys(va-imageVirt)
	case va >= m.direct && va < m.direct+Size:
		return addr.Phys(va - m.direct)
	case va >= MemMap && va < MemMap+Size>>m.unit*PageStruct:
		return memMapPhys + addr.Phys(va-MemMap)
	}
	m.t.Fatalf("kerneltest: %v is nowhere", va)
	return 0
}

// Put writes bytes.
func (m *Machine) Put(va addr.Virt, b []byte) { copy(m.Mem[m.Phys(va):], b) }

// PutU64 writes a number of 8 bytes.
func (m *Machine) PutU64(va addr.Virt, v uint64) {
	binary.LittleEndian.PutUint64(m.Mem[m.Phys(va):], v)
}

// PutU32 writes a number of 4 bytes.
func (m *Machine) PutU32(va addr.Virt, v uint32) {
	binary.LittleEndian.PutUint32(m.Mem[m.Phys(va):], v)
}

// Page returns the address of the struct page for the page at va.
func (m *Machine) Page(va addr.Virt) addr.Virt {
	return MemMap + addr.Virt(uint64(m.unit.PFN(m.Phys(va)))*PageStruct)
}

// Data returns the address of the bytes of the page that a struct page describes.
func (m *Machine) Data(page addr.Virt) addr.Virt {
	return m.direct + addr.Virt(m.unit.Phys(addr.PFN((page-MemMap)/PageStruct)))
}

// Map maps base pages, with as many levels of tables as addresses of 48 bits take. pa is the address of a page.
func (m *Machine) Map(va addr.Virt, pa addr.Phys, n int) {
	bottom, bits := int(m.unit), int(m.unit)-3 // a table is as large as a page
	mask := uint64(1)<<bits - 1
	top := bottom + (47-bottom)/bits*bits
	for off := 0; off < n; off += int(m.unit.Size()) {
		table := m.root
		at := (uint64(va) + uint64(off)) & (1<<48 - 1)
		for shift := top; shift > bottom; shift -= bits {
			slot := m.Mem[uint64(table)+at>>shift&mask*8:]
			entry := binary.LittleEndian.Uint64(slot)
			if entry == 0 {
				if m.tables >= Size {
					m.t.Fatal("kerneltest: out of page tables")
				}
				entry = uint64(m.tables) | 3
				m.tables += addr.Phys(m.unit.Size())
				binary.LittleEndian.PutUint64(slot, entry)
			}
			table = addr.Phys(entry &^ 3)
		}
		binary.LittleEndian.PutUint64(m.Mem[uint64(table)+at>>bottom&mask*8:], uint64(pa)+uint64(off)|3)
	}
}

// Finish adds types, symbols and the note: the kernel can then be found.
func (m *Machine) Finish(types ...btf.Type) {
	m.t.Helper()
	if m.Functions { // a kernel has many types
		for i := range 2000 {
			types = append(types, &btf.Struct{Name: fmt.Sprintf("one_of_very_many_%d", i), Size: 4})
		}
	}
	b, err := btf.NewBuilder(types, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	raw, err := b.Marshal(nil, nil)
	if err != nil {
		m.t.Fatal(err)
	}
	start := m.Image("__start_BTF", len(raw))
	m.Put(start, raw)
	m.symbols = append(m.symbols, symbol{"__stop_BTF", start + addr.Virt(len(raw))})
	m.FinishWithoutTypes()
}

// FinishWithoutTypes is Finish for a kernel without type information.
func (m *Machine) FinishWithoutTypes() {
	if m.Functions {
		m.putExports()
	}
	m.putNote(m.putSymbols())
}

// putSymbols writes a symbol table whose tokens are single letters.
func (m *Machine) putSymbols() map[string]addr.Virt {
	all := append([]symbol(nil), m.symbols...)
	if m.Functions {
		all = slices.DeleteFunc(all, func(s symbol) bool { return s.name != "_stext" })
	}
	le := binary.LittleEndian
	var names, tokens, index, offsets []byte
	base := startKernelMap
	for i := range 256 {
		index = le.AppendUint16(index, uint16(len(tokens)))
		if i > 0 {
			tokens = append(tokens, byte(i))
		}
		tokens = append(tokens, 0)
	}
	for _, s := range all {
		names = append(names, byte(len(s.name)+1), 'T')
		names = append(names, s.name...)
		offsets = le.AppendUint32(offsets, uint32(int32(base-1-s.at)))
	}
	at := make(map[string]addr.Virt)
	put := func(name string, b []byte) {
		at[name] = m.Image(name, len(b))
		m.Put(at[name], b)
	}
	put("kallsyms_offsets", offsets)
	put("kallsyms_relative_base", le.AppendUint64(nil, uint64(base)))
	put("kallsyms_num_syms", le.AppendUint32(nil, uint32(len(all))))
	put("kallsyms_names", names)
	put("kallsyms_token_table", append(tokens, make([]byte, 16<<10)...))
	put("kallsyms_token_index", index)
	return at
}

// putExports writes a table of exported symbols and their names, with enough further
// symbols to make it look like a kernel's.
func (m *Machine) putExports() {
	all := slices.DeleteFunc(slices.Clone(m.symbols), func(s symbol) bool {
		return slices.Contains(m.Hidden, s.name) || slices.Contains([]string{"linux_banner", "__start_BTF", "__stop_BTF"}, s.name)
	})
	for i := range 300 {
		all = append(all, symbol{fmt.Sprintf("exported_%d", i), imageVirt})
	}
	slices.SortFunc(all, func(a, b symbol) int { return strings.Compare(a.name, b.name) })
	all = slices.CompactFunc(all, func(a, b symbol) bool { return a.name == b.name })
	var names []byte
	starts := make([]int, len(all))
	for i, s := range all {
		starts[i] = len(names)
		names = append(append(names, s.name...), 0)
	}
	at := m.Image("", len(names))
	m.Put(at, names)
	table := m.Image("", 12*len(all))
	for i, s := range all {
		entry := table + addr.Virt(12*i)
		m.PutU32(entry, uint32(s.at-entry))
		m.PutU32(entry+4, uint32(at+addr.Virt(starts[i])-(entry+4)))
	}
}

func (m *Machine) putNote(at map[string]addr.Virt) {
	text := fmt.Sprintf("OSRELEASE=9.9.9-made-up\nPAGESIZE=%d\nOFFSET(uts_namespace.name)=0\n", m.unit.Size())
	for _, s := range m.symbols {
		switch s.name {
		case "init_uts_ns", "_stext", "init_top_pgt", "swapper_pg_dir":
			text += fmt.Sprintf("SYMBOL(%s)=%x\n", s.name, uint64(s.at))
		}
		if s.name == "init_top_pgt" {
			text += fmt.Sprintf("SYMBOL(swapper_pg_dir)=%x\n", uint64(s.at))
		}
	}
	for _, name := range []string{
		"kallsyms_offsets", "kallsyms_relative_base", "kallsyms_num_syms",
		"kallsyms_names", "kallsyms_token_table", "kallsyms_token_index",
	} {
		text += fmt.Sprintf("SYMBOL(%s)=%x\n", name, uint64(at[name]))
	}
	if m.arm64 {
		text += fmt.Sprintf("NUMBER(VA_BITS)=48\nNUMBER(kimage_voffset)=0x%x\nNUMBER(PHYS_OFFSET)=0x%x\nNUMBER(TCR_EL1_T1SZ)=0x10\n",
			uint64(imageVirt)-uint64(imagePhys), uint64(1<<64-below))
		text += fmt.Sprintf("NUMBER(VMEMMAP_START)=0x%x\n", uint64(MemMap)-below>>m.unit*PageStruct)
	} else {
		text += fmt.Sprintf("NUMBER(phys_base)=%d\n", int64(imagePhys)-int64(imageVirt-startKernelMap))
	}
	m.Note = text + m.Lines
	text = m.Note
	note := binary.LittleEndian.AppendUint32(nil, 11)
	note = binary.LittleEndian.AppendUint32(note, uint32(len(text)))
	note = binary.LittleEndian.AppendUint32(note, 0)
	note = append(note, "VMCOREINFO\x00\x00"+text...)
	copy(m.Mem[notePhys:], note)
}

// View implements ram.Memory.
func (m *Machine) View(pa addr.Phys, n int) ([]byte, error) {
	if n < 0 || !(addr.PhysRange{End: Size}).Contains(pa, uint64(n)) {
		return nil, &ram.Fault{Addr: pa, Len: n}
	}
	return m.Mem[pa : pa+addr.Phys(n)], nil
}

// Ranges implements ram.Memory.
func (m *Machine) Ranges() []addr.PhysRange { return []addr.PhysRange{{End: Size}} }

// Close implements ram.Memory.
func (m *Machine) Close() error { return nil }

// Clone copies the machine, so that a test can damage the copy.
func (m *Machine) Clone(t testing.TB) *Machine {
	c := *m
	c.t = t
	c.Mem = append([]byte(nil), m.Mem...)
	return &c
}

// Damage overwrites memory as a fuzzer says: each six bytes of script are four bytes of
// address, one byte of value, and one byte for how many bytes to set to it. near, if any,
// are addresses to stay close to.
func (m *Machine) Damage(script []byte, near ...addr.Virt) {
	for ; len(script) >= 6; script = script[6:] {
		at := uint64(binary.LittleEndian.Uint32(script))
		if len(near) > 0 {
			at = uint64(m.Phys(near[at%uint64(len(near))])) + at>>8%1024
		}
		for i := range uint64(script[5]%8) + 1 {
			m.Mem[(at+i)%Size] = script[4]
		}
	}
}
