package kernel

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ram"
)

func TestParseNote(t *testing.T) {
	const good = "OSRELEASE=6.1.0\nSYMBOL(x)=ffffffff81000000\nOFFSET(a.b)=16\nNUMBER(phys_base)=-42\nNUMBER(hex)=0xfffffffffffff000\n"
	n, err := parseNote([]byte(good + "CRASHTIME=17\n\x00\x00"))
	if err != nil {
		t.Fatal(err)
	}
	if va, err := n.symbol("x"); va != 0xffffffff81000000 || err != nil {
		t.Errorf("symbol: %v, %v", va, err)
	}
	if v, err := n.number("phys_base"); v != -42 || err != nil {
		t.Errorf("number: %v, %v", v, err)
	}
	if v, err := n.offset("a.b"); v != 16 || err != nil {
		t.Errorf("offset: %v, %v", v, err)
	}
	if n.text != good {
		t.Errorf("text is %q", n.text)
	}
	if _, err := n.symbol("y"); !errors.Is(err, ErrNotFound) {
		t.Errorf("absent symbol: %v", err)
	}
	if v, err := n.number("hex"); v != -4096 || err != nil {
		t.Errorf("number: %v, %v", v, err)
	}
	if n.arch != &amd64 {
		t.Errorf("it is of %v", n.arch)
	}
	n, err = parseNote([]byte("OSRELEASE=6.1.0\nNUMBER(kimage_voffset)=0xffff8000\nPAGESIZE=4096\n"))
	if err != nil || n.arch != &arm64 {
		t.Errorf("of arm64: %v, %v", n, err)
	}
	for name, bad := range map[string]string{
		"no release":         "NUMBER(phys_base)=1\n",
		"no architecture":    "OSRELEASE=6.1.0\n",
		"large pages":        "OSRELEASE=6.1.0\nNUMBER(phys_base)=1\nPAGESIZE=65536\n",
		"larger ones":        "OSRELEASE=6.1.0\nNUMBER(kimage_voffset)=0xffff8000\nPAGESIZE=131072\n",
		"no number":          "OSRELEASE=6.1.0\nNUMBER(kimage_voffset)=0xhuh\n",
		"a format string":    "OSRELEASE=%s\n\x01NUMBER(phys_base)=%ld\n",
		"a line without '='": good + "huh\n",
		"a line twice":       good + good,
	} {
		if _, err := parseNote([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzNote checks that what is accepted has a release, and that its text is what was parsed.
func FuzzNote(f *testing.F) {
	f.Add([]byte("OSRELEASE=6.1.0\nNUMBER(phys_base)=1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		noteTextSize(b)
		n, err := parseNote(b)
		if err != nil {
			return
		}
		if n.values["OSRELEASE"] == "" || !strings.HasPrefix(string(b), n.text) {
			t.Errorf("accepted %q", b)
		}
		again, err := parseNote([]byte(n.text))
		if err != nil || len(again.values) != len(n.values) {
			t.Errorf("%q parses differently again: %v", n.text, err)
		}
	})
}

// letters are tokens of one letter each.
func letters() (table, index []byte) {
	for i := range tokenCount {
		index = binary.LittleEndian.AppendUint16(index, uint16(len(table)))
		if i > 0 {
			table = append(table, byte(i))
		}
		table = append(table, 0)
	}
	return table, index
}

func TestSymbolTable(t *testing.T) {
	table, index := letters()
	long := strings.Repeat("x", 300)
	names := append([]byte("\x06T_stext\x04tabc\x04dabc"), 0x80|301&0x7f, 301>>7, 't')
	names[0] = 7
	names = append(names, long...)
	le := binary.LittleEndian
	const base addr.Virt = 0xffffffff81000000
	for name, tc := range map[string]struct {
		offsets []uint32
		base    addr.Virt
		at      addr.Virt
	}{
		"absolute per-CPU": {[]uint32{^uint32(0x10), 0x5000, ^uint32(0x20), ^uint32(0x30)}, base, 0xffffffff82000000},
		"from base":        {[]uint32{0x10, 0x5000, 0x20, 0x30}, base, 0xffffffff82000000},
		"from itself":      {[]uint32{0x10, 0x5000, 0x18, 0x24}, 0, base},
	} {
		var offsets []byte
		for _, o := range tc.offsets {
			offsets = le.AppendUint32(offsets, o)
		}
		s, err := newSymbolTable(symbolBytes{count: 4, names: names, tokenTable: table, tokenIndex: index, offsets: offsets}, nil)
		if err != nil {
			t.Fatal(err)
		}
		want := base + 0x10
		if err := s.resolveOffsets(tc.base, tc.at, map[string]addr.Virt{"_stext": want}); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := s.lookup("_stext"); len(got) != 1 || got[0] != want {
			t.Errorf("%s: _stext at %v", name, got)
		}
		if got := s.lookup("abc"); len(got) != 2 {
			t.Errorf("%s: abc at %v", name, got)
		}
		if got := s.lookup(long); len(got) != 1 || got[0] != base+0x30 {
			t.Errorf("%s: the long name at %v", name, got)
		}
		if err := s.resolveOffsets(tc.base, tc.at, map[string]addr.Virt{"_stext": want + 1}); err == nil {
			t.Errorf("%s: settled on a wrong address", name)
		}
	}
}

// FuzzSymbolTable checks that every symbol of an accepted table can be found by its name.
func FuzzSymbolTable(f *testing.F) {
	table, index := letters()
	f.Add([]byte("\x04Tabc\x03Tde"), table, index, uint16(2))
	f.Fuzz(func(t *testing.T, names, table, index []byte, count uint16) {
		s, err := newSymbolTable(symbolBytes{
			count: int(count), names: names, tokenTable: table, tokenIndex: index,
			offsets: make([]byte, 4*int(count)),
		}, nil)
		if err != nil {
			return
		}
		x, err := s.index()
		if err != nil {
			t.Fatal(err)
		}
		for i := range min(len(x.start), 50) {
			name, _, err := s.expand(int(x.start[i]), nil)
			if err != nil || len(s.lookup(string(inSource(name)))) == 0 {
				t.Errorf("symbol %d %q is not found: %v", i, name, err)
			}
		}
	})
}

// flat is memory from address 0 on.
type flat []byte

func (f flat) View(pa addr.Phys, n int) ([]byte, error) {
	if n < 0 || uint64(pa) > uint64(len(f)) || uint64(n) > uint64(len(f))-uint64(pa) {
		return nil, &ram.Fault{Addr: pa, Len: n}
	}
	return f[pa : pa+addr.Phys(n)], nil
}
func (f flat) Ranges() []addr.PhysRange { return []addr.PhysRange{{End: addr.Phys(len(f))}} }
func (f flat) Close() error             { return nil }

// tables builds page tables with pages of 4 KiB: each entry is put at the slot that maps va.
func tables(levels int, va addr.Virt, entries ...uint64) flat {
	return tablesOf(addr.Pages4K, levels, va, entries...)
}

func tablesOf(unit addr.Pages, levels int, va addr.Virt, entries ...uint64) flat {
	mem := make(flat, len(entries)*int(unit.Size()))
	each := int(unit) - 3
	for i, e := range entries {
		slot := uint64(va) >> (int(unit) + each*(levels-1-i)) & (1<<each - 1)
		binary.LittleEndian.PutUint64(mem[i*int(unit.Size())+int(slot)*8:], e)
	}
	return mem
}

func TestWalk(t *testing.T) {
	const va addr.Virt = 0xffff_a234_5678_9abc
	const nx, sme = 1 << 63, 1 << 47
	for name, tc := range map[string]struct {
		levels  int
		entries []uint64
		sme     uint64
		want    addr.Phys // 0 means an error
		size    uint64
	}{
		"four levels":         {4, []uint64{0x1003, 0x2003, 0x3003, nx | 0x7_7000 | 3}, 0, 0x7_7abc, 1 << 12},
		"five levels":         {5, []uint64{0x1003, 0x2003, 0x3003, 0x4003, 0x7_7003}, 0, 0x7_7abc, 1 << 12},
		"a page of 2 MiB":     {4, []uint64{0x1003, 0x2003, 0x4020_1083}, 0, 0x4020_0000 + addr.Phys(va&0x1f_ffff), 1 << 21},
		"a page of 1 GiB":     {4, []uint64{0x1003, 0x8000_0083}, 0, 0x8000_0000 + addr.Phys(va&0x3fff_ffff), 1 << 30},
		"encrypted memory":    {4, []uint64{sme | 0x1003, sme | 0x2003, sme | 0x3003, sme | 0x7_7003}, sme, 0x7_7abc, 1 << 12},
		"not present":         {4, []uint64{0x1003, 0x2003, 0x3003, 0x7_7002}, 0, 0, 0},
		"a table out of RAM":  {4, []uint64{0x1003, 0x2003, 0x9999_9003}, 0, 0, 0},
		"large in a top slot": {4, []uint64{0x1083, 0x2002}, 0, 0, 0},
	} {
		p := amd64Paging(tc.levels, tc.sme)
		p.mem = tables(tc.levels, va, tc.entries...)
		checkTranslation(t, name, p, va, tc.want, tc.size)
	}
	p := amd64Paging(4, 0)
	p.mem = flat{}
	var unmapped *Unmapped
	if _, _, err := p.translate(0x1234_0000_0000_0000); !errors.As(err, &unmapped) || unmapped.Level != 0 {
		t.Errorf("an address that is not canonical: %v", err)
	}
}

// checkTranslation checks that va translates to want, in a page of a size, or fails if want is 0.
func checkTranslation(t *testing.T, name string, p *paging, va addr.Virt, want addr.Phys, size uint64) {
	t.Helper()
	for range 2 { // the second time from the cache
		pa, room, err := p.translate(va)
		if want == 0 {
			if err == nil {
				t.Errorf("%s: %v", name, pa)
			}
			continue
		}
		if err != nil || pa != want || room != size-uint64(va)&(size-1) {
			t.Errorf("%s: %v with %d bytes, %v; want %v", name, pa, room, err, want)
		}
	}
}

func TestWalkARM64(t *testing.T) {
	const va, low, wide addr.Virt = 0xffff_a234_5678_9abc, 0xffff_ffa4_5678_9abc, 0xfffa_a234_5678_9abc
	const software = 1<<63 | 0x7f<<52
	for name, tc := range map[string]struct {
		bits    int
		va      addr.Virt
		entries []uint64
		want    addr.Phys // 0 means an error
		size    uint64
	}{
		"48 bits":             {48, va, []uint64{0x1003, 0x2003, 0x3003, software | 0x7_7703}, 0x7_7abc, 1 << 12},
		"39 bits":             {39, low, []uint64{0x1003, 0x2003, software | 0x7_7703}, 0x7_7abc, 1 << 12},
		"52 bits":             {52, wide, []uint64{0x1003, 0x2003, 0x3003, 0x4003, software | 0x7_7003}, 0x7_7abc, 1 << 12},
		"52 bits, high":       {52, wide, []uint64{0x1003, 0x2003, 0x3003, 0x4003, 1<<49 | 0x7_7303}, 3<<50 | 1<<49 | 0x7_7abc, 1 << 12},
		"not the upper half":  {48, wide, []uint64{0x1003, 0x2003, 0x3003, 0x7_7003}, 0, 0},
		"of a program":        {48, 0x234_5678_9abc, []uint64{0x1003, 0x2003, 0x3003, 0x7_7003}, 0, 0},
		"a block of 2 MiB":    {48, va, []uint64{0x1003, 0x2003, software | 0x4020_0701}, 0x4020_0000 + addr.Phys(va&0x1f_ffff), 1 << 21},
		"a block of 1 GiB":    {48, va, []uint64{0x1003, 0x8000_0701}, 0x8000_0000 + addr.Phys(va&0x3fff_ffff), 1 << 30},
		"a block of 512 GiB":  {52, wide, []uint64{0x1003, 0x80_0000_0001}, 0x80_0000_0000 + addr.Phys(wide&0x7f_ffff_ffff), 1 << 39},
		"512 GiB, 48 bits":    {48, va, []uint64{0x80_0000_0001}, 0, 0},
		"a block at the top":  {52, wide, []uint64{0x1001}, 0, 0},
		"a page as a block":   {48, va, []uint64{0x1003, 0x2003, 0x3003, 0x7_7001}, 0, 0},
		"not valid":           {48, va, []uint64{0x1003, 0x2003, 0x3002}, 0, 0},
		"a table out of RAM":  {48, va, []uint64{0x1003, 0x2003, 0x9999_9003}, 0, 0},
		"bits that are no PA": {48, va, []uint64{0x1003, 0x2003, 0x3003, 1<<49 | 0x7_7303}, 0x7_7abc, 1 << 12},
	} {
		p, err := arm64Paging(addr.Pages4K, tc.bits)
		if err != nil {
			t.Fatal(err)
		}
		if len(tc.entries) > p.levels || p.levels != (tc.bits-4)/9 {
			t.Errorf("%s: %d levels", name, p.levels)
		}
		at := tc.va & (1<<tc.bits - 1) // a top table may have fewer entries
		p.mem = tables(p.levels, at, tc.entries...)
		checkTranslation(t, name, p, tc.va, tc.want, tc.size)
	}
	for _, bits := range []int{-1, 0, 35, 53, 64} {
		if _, err := arm64Paging(addr.Pages64K, bits); err == nil {
			t.Errorf("%d bits are accepted", bits)
		}
	}
}

// TestWalkLargePages walks tables with pages of 16 and 64 KiB, which cover as much with fewer levels,
// and keep the upper bits of an address elsewhere (Arm ARM, DDI 0487, D8.3.1).
func TestWalkLargePages(t *testing.T) {
	const va, wide addr.Virt = 0xffff_a234_5678_9abc, 0xfffa_a234_5678_9abc
	const low addr.Virt = 0xffff_fe34_5678_9abc
	const software = 1<<63 | 0x7f<<52
	for name, tc := range map[string]struct {
		unit    addr.Pages
		bits    int
		levels  int
		va      addr.Virt
		entries []uint64
		want    addr.Phys // 0 means an error
		size    uint64
	}{
		"16 KiB, 36 bits":             {addr.Pages16K, 36, 2, 0xffff_fff4_5678_9abc, []uint64{0x4003, software | 0x7_4703}, 0x7_5abc, 1 << 14},
		"16 KiB, 47 bits":             {addr.Pages16K, 47, 3, va | 1<<46, []uint64{0x4003, 0x8003, software | 0x7_4703}, 0x7_5abc, 1 << 14},
		"16 KiB, 48 bits":             {addr.Pages16K, 48, 4, va, []uint64{0x4003, 0x8003, 0xc003, software | 0x7_4703}, 0x7_5abc, 1 << 14},
		"16 KiB, 52 bits, high":       {addr.Pages16K, 52, 4, wide, []uint64{0x4003, 0x8003, 0xc003, 1<<49 | 0x7_4303}, 3<<50 | 1<<49 | 0x7_5abc, 1 << 14},
		"16 KiB, a block of 32 MiB":   {addr.Pages16K, 48, 4, va, []uint64{0x4003, 0x8003, software | 0x4200_0701}, 0x4200_0000 + addr.Phys(va&0x1ff_ffff), 1 << 25},
		"16 KiB, of 64 GiB":           {addr.Pages16K, 52, 4, wide, []uint64{0x4003, 0x10_0000_0001}, 0x10_0000_0000 + addr.Phys(wide&0xf_ffff_ffff), 1 << 36},
		"16 KiB, of 64 GiB, 48 bits":  {addr.Pages16K, 48, 4, va, []uint64{0x4003, 0x10_0000_0001}, 0, 0},
		"16 KiB, a page as a block":   {addr.Pages16K, 47, 3, va | 1<<46, []uint64{0x4003, 0x8003, 0x7_4701}, 0, 0},
		"64 KiB, 42 bits":             {addr.Pages64K, 42, 2, low, []uint64{0x1_0003, software | 0x7_0703}, 0x7_9abc, 1 << 16},
		"64 KiB, 48 bits":             {addr.Pages64K, 48, 3, va, []uint64{0x1_0003, 0x2_0003, software | 0x7_0703}, 0x7_9abc, 1 << 16},
		"64 KiB, 52 bits, high":       {addr.Pages64K, 52, 3, wide, []uint64{0x1_0003, 0x2_0003, 0x7_a703}, 0xa<<48 | 0x7_9abc, 1 << 16},
		"64 KiB, a CPU of 48 bits":    {addr.Pages64K, 52, 3, va, []uint64{0x1_0003, 0x2_0003, 0x7_0703}, 0x7_9abc, 1 << 16},
		"64 KiB, a block of 512 MiB":  {addr.Pages64K, 48, 3, va, []uint64{0x1_0003, 0x4000_0701}, 0x4000_0000 + addr.Phys(va&0x1fff_ffff), 1 << 29},
		"64 KiB, a block at the top":  {addr.Pages64K, 48, 3, va, []uint64{0x4000_0701}, 0, 0},
		"64 KiB, a table out of RAM":  {addr.Pages64K, 48, 3, va, []uint64{0x1_0003, 0x9999_0003}, 0, 0},
		"64 KiB, of a program":        {addr.Pages64K, 48, 3, 0x234_5678_9abc, []uint64{0x1_0003, 0x2_0003, 0x7_0703}, 0, 0},
		"64 KiB, not the upper half":  {addr.Pages64K, 48, 3, wide, []uint64{0x1_0003, 0x2_0003, 0x7_0703}, 0, 0},
		"64 KiB, the last is no page": {addr.Pages64K, 48, 3, va, []uint64{0x1_0003, 0x2_0003, 0x7_0701}, 0, 0},
	} {
		p, err := arm64Paging(tc.unit, tc.bits)
		if err != nil {
			t.Fatal(err)
		}
		if p.levels != tc.levels {
			t.Errorf("%s: %d levels", name, p.levels)
		}
		p.mem = tablesOf(tc.unit, p.levels, tc.va&(1<<tc.bits-1), tc.entries...)
		checkTranslation(t, name, p, tc.va, tc.want, tc.size)
	}
}

// FuzzWalk checks that a translation stays within its page, keeps the offset in it, and is
// the same from the cache.
func FuzzWalk(f *testing.F) {
	f.Add([]byte(tables(4, 0, 0x1003, 0x2003, 0x3003, 0x77003)), uint64(0), uint8(0))
	f.Add([]byte(tables(4, 0, 0x1003, 0x2003, 0x3003, 0x77003)), uint64(0xffff_0000_0000_0000), uint8(12))
	f.Fuzz(func(t *testing.T, mem []byte, va uint64, kind uint8) {
		p, largest := amd64Paging(4+int(kind&1), 0), uint64(1<<30)
		if kind > 1 {
			var err error
			unit := []addr.Pages{addr.Pages4K, addr.Pages16K, addr.Pages64K}[int(kind)/17%3]
			if p, err = arm64Paging(unit, 36+int(kind)%17); err != nil {
				t.Fatal(err)
			}
			largest = 1 << 39
		}
		p.mem = flat(mem)
		pa, room, err := p.translate(addr.Virt(va))
		again, room2, err2 := p.translate(addr.Virt(va))
		if (err == nil) != (err2 == nil) || pa != again || room != room2 {
			t.Errorf("%v, %d, %v; from the cache %v, %d, %v", pa, room, err, again, room2, err2)
		}
		if err == nil && (uint64(pa)&0xfff != va&0xfff || room == 0 || room > largest) {
			t.Errorf("%#x translates to %v with %d bytes", va, pa, room)
		}
	})
}

// FuzzBTF checks that accepted types, on their own or as a module's, can be asked,
// and that fields lie within their structure.
func FuzzBTF(f *testing.F) {
	u32 := &btf.Int{Name: "u32", Size: 4}
	inner := &btf.Union{Size: 8, Members: []btf.Member{{Name: "b", Type: &btf.Array{Index: u32, Type: u32, Nelems: 2}}}}
	outer := &btf.Struct{Name: "outer", Size: 16, Members: []btf.Member{
		{Name: "a", Type: &btf.Typedef{Name: "t", Type: &btf.Const{Type: u32}}},
		{Type: inner, Offset: 64},
	}}
	outer.Members = append(outer.Members, btf.Member{Name: "next", Type: &btf.Pointer{Target: outer}})
	builder, err := btf.NewBuilder([]btf.Type{outer, &btf.Enum{Name: "e", Size: 4, Values: []btf.EnumValue{{Name: "X", Value: 1}}}}, nil)
	if err != nil {
		f.Fatal(err)
	}
	good, err := builder.Marshal(nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	base, err := newTypes(good, nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, "outer", "b")
	f.Add(good, "e", "X")
	f.Fuzz(func(t *testing.T, raw []byte, name, path string) {
		whole, err := newTypes(raw, nil, nil)
		if err == nil {
			askTypes(t, whole, name, path)
		}
		split, err := newTypes(raw, base, nil)
		if err == nil {
			askTypes(t, split, name, path)
		}
	})
}

func askTypes(t *testing.T, types *Types, name, path string) {
	t.Helper()
	l := types.Layout(name)
	field := l.Field(path)
	if l.Err() == nil && (field.Off < 0 || field.Size <= 0 || field.Off+field.Size > l.Size) {
		t.Errorf("%s.%s is %v of %d bytes", name, path, field, l.Size)
	}
	types.Enum(name, path)
}

// TestDeepTypes checks that any number of pointers may follow each other, but only a few
// types may be nested: the decoder recurses along references.
func TestDeepTypes(t *testing.T) {
	chain := func(kind uint32, n int) []byte {
		le := binary.LittleEndian
		var types []byte
		for i := range n {
			types = le.AppendUint32(types, 0)
			types = le.AppendUint32(types, kind<<24)
			types = le.AppendUint32(types, uint32(i+2))
		}
		// The last one is a structure whose member is of the first type.
		types = le.AppendUint32(types, 1)
		types = le.AppendUint32(types, kindStruct<<24|1)
		types = le.AppendUint32(types, 8)
		for _, v := range []uint32{1, 1, 0} {
			types = le.AppendUint32(types, v)
		}
		strs := "\x00s\x00"
		head := []byte{0x9f, 0xeb, 1, 0}
		for _, v := range []int{24, 0, len(types), len(types), len(strs)} {
			head = le.AppendUint32(head, uint32(v))
		}
		return append(append(head, types...), strs...)
	}
	types, err := newTypes(chain(kindPointer, 500_000), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if f := types.Layout("s").Field("s"); f.Size != 8 {
		t.Errorf("%v", f)
	}
	if _, err := newTypes(chain(kindPointer, maxTypes+2), nil, nil); err == nil {
		t.Error("too many types were accepted")
	}
	for _, n := range []int{1, 100, 500_000} {
		if _, err := newTypes(chain(kindConst, n), nil, nil); err == nil {
			t.Errorf("a structure that contains itself over %d types was accepted", n)
		}
	}
}
