package metal

import (
	"bytes"
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/wire"
)

// machine is the machine of the fixtures, with a reservation.
func machine(t testing.TB, replaced map[string]string) (*Machine, Reservation) {
	t.Helper()
	m, err := Look(root(replaced))
	if err != nil {
		t.Fatal(err)
	}
	r, err := ParseReservation(m.Cmdline)
	if err != nil {
		t.Fatal(err)
	}
	return m, r
}

func TestLook(t *testing.T) {
	m, _ := machine(t, nil)
	if !slices.Equal(m.Online, []uint32{0, 2}) || !slices.Equal(m.Free(), []uint32{4, 6}) {
		t.Errorf("online %v, free %v", m.Online, m.Free())
	}
	for _, c := range []struct{ name, bad string }{
		{"proc/cpuinfo", "processor : 0\napicid : 7\n"},                        // not in the firmware's list
		{"proc/cpuinfo", "processor : 1\napicid : 2\ninitial apicid : 2\n"},    // without the boot CPU
		{"proc/cpuinfo", "processor : 0\napicid : 2\ninitial apicid : 0\n"},    // its number differs from CPUID's
		{"proc/cpuinfo", "processor : 0\napicid : none\ninitial apicid : 0\n"}, // no number
		{"proc/iomem", "00000000-00000000 : System RAM\n"},
		{acpiDir + "APIC", ""}, {acpiDir + "MCFG", ""}, {acpiDir + "FACP", ""},
	} {
		if _, err := Look(root(map[string]string{c.name: c.bad})); err == nil {
			t.Errorf("%s of %q was taken", c.name, c.bad)
		}
	}
}

func TestBridges(t *testing.T) {
	m, _ := machine(t, map[string]string{
		"proc/iomem": iomemReserved + "400000000-4ffffffff : PCI Bus 0000:80\n",
	})
	got, err := m.bridges()
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].LastBus != 0x7f || got[1].FirstBus != 0x80 || got[1].LastBus != 0xff || len(got[0].memory) != 3 || len(got[0].ports) != 2 {
		t.Errorf("%+v", got)
	}
	// The list as it is when firmware has the buses' memory reserved.
	nested, _ := machine(t, map[string]string{"proc/iomem": strings.NewReplacer(
		"c0000000-febfffff", "c0000000-febfffff : Reserved\n  c0000000-febfffff",
		"380000000-b7fffffff", "380000000-b7fffffff : Reserved\n  380000000-3ffffffff : PCI Bus 0000:80\n    380000000-3800fffff : PCI Bus 0000:81\n  400000000-b7fffffff",
	).Replace(iomemReserved)})
	inside, err := nested.bridges()
	if err != nil || len(inside) != 2 || len(inside[0].memory) != 3 || inside[1].FirstBus != 0x80 || len(inside[1].memory) != 1 {
		t.Errorf("%+v, %v", inside, err)
	}
	m.Segments[0].LastBus = 0x7f
	if got, err := m.bridges(); err == nil {
		t.Errorf("a bus without configuration space: %+v", got)
	}
}

// find returns the piece at an address.
func (b *Built) find(t *testing.T, at uint64) []byte {
	t.Helper()
	for _, p := range b.Pieces {
		if p.At == at {
			return p.Bytes
		}
	}
	t.Fatalf("nothing is at %#x", at)
	return nil
}

func TestBuild(t *testing.T) {
	m, r := machine(t, nil)
	image := bytes.Repeat([]byte("image"), 2000)
	b, err := Build(m, r, &Understudy{Kernel: bzImage(nil), Image: image, Append: "more=1", TSC: 2_500_000})
	if err != nil {
		t.Fatal(err)
	}
	if b.CPU != 4 || b.Vector != 0x20 {
		t.Errorf("CPU %d starts at page %#x", b.CPU, b.Vector)
	}
	for _, word := range []string{"maxcpus=2", "disable_cpu_apicid=0", "tsc_early_khz=2500000", "no_ipi_broadcast=1", reserved, UnderstudyParameter, "more=1"} {
		if !slices.Contains(strings.Fields(b.Line), word) {
			t.Errorf("%s is not in %s", word, b.Line)
		}
	}
	for i, p := range b.Pieces {
		in := Range{p.At, p.At + uint64(len(p.Bytes))}
		if p.At != mpPointer && !slices.ContainsFunc([]Range{r.Low, r.Mid, r.High}, func(o Range) bool { return o.Contains(in) }) {
			t.Errorf("%v is not in reserved memory", in)
		}
		for _, o := range b.Pieces[:i] {
			if in.overlaps(Range{o.At, o.At + uint64(len(o.Bytes))}) {
				t.Errorf("%v and what is at %#x overlap", in, o.At)
			}
		}
	}
	params := b.find(t, r.Mid.Start+midParams)
	at := uint64(binary.LittleEndian.Uint32(params[bootRamdisk:])) | uint64(binary.LittleEndian.Uint32(params[bootExtRamdisk:]))<<32
	if !bytes.Equal(b.find(t, at), image) || binary.LittleEndian.Uint32(params[bootRamdiskSize:]) != uint32(len(image)) {
		t.Errorf("the image is not at %#x", at)
	}
	checkTables(t, b.find(t, r.Mid.Start+midACPI), r.Mid.Start+midACPI, binary.LittleEndian.Uint64(params[bootRSDP:]))
	c, err := decodeConfig(b.find(t, r.Mid.Start+midConfig))
	if err != nil || c.BootCPU != 0 || !slices.Equal(c.Others, []uint32{2}) || len(c.Memory) != 5 {
		t.Errorf("%+v, %v", c, err)
	}
}

// checkTables walks the tables as a kernel would.
func checkTables(t *testing.T, b []byte, base, root uint64) {
	t.Helper()
	at := func(where uint64) []byte { return b[where-base:] }
	p := at(root)
	if string(p[:8]) != "RSD PTR " || sum(p[:20]) != 0 || sum(p[:36]) != 0 {
		t.Fatalf("no root pointer at %#x", root)
	}
	list, err := table(at(binary.LittleEndian.Uint64(p[24:])), "XSDT")
	if err != nil || len(list) != acpiHeader+2*8 {
		t.Fatalf("%x, %v", list, err)
	}
	fadt, err := table(at(binary.LittleEndian.Uint64(list[acpiHeader:])), "FACP")
	if err != nil || len(fadt) != fadtSize {
		t.Fatalf("%x, %v", fadt, err)
	}
	if _, err := table(at(binary.LittleEndian.Uint64(fadt[fadtXDSDT:])), "DSDT"); err != nil {
		t.Error(err)
	}
	cpus, err := ParseMADT(at(binary.LittleEndian.Uint64(list[acpiHeader+8:])))
	// The machine's boot CPU, those of the understudy, and the others.
	if err != nil || !slices.Equal(cpus.IDs, []uint32{0, 4, 6, 2}) {
		t.Errorf("%+v, %v", cpus, err)
	}
}

func TestBuildRefused(t *testing.T) {
	kernel := func(edit func(b []byte)) *Understudy { return &Understudy{Kernel: bzImage(edit), TSC: 1e6} }
	put16 := func(at int, v uint16) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint16(b[at:], v) }
	}
	role := func(c wire.Config) *Understudy {
		u := kernel(nil)
		u.Config.Role = c
		return u
	}
	for name, u := range map[string]*Understudy{
		"NFS":               role(wire.Config{NFS: new(wire.NFS)}),
		"type of disk":      role(wire.Config{Disks: []wire.Disk{{Name: "data", Type: "f2fs", Mount: "/srv"}}}),
		"place of disk":     role(wire.Config{Disks: []wire.Disk{{Name: "data", Type: "ext4", Mount: "srv"}}}),
		"MAC":               role(wire.Config{NICs: []wire.NIC{{MAC: "52:54", Address: "10.0.0.1/8"}}}),
		"address":           role(wire.Config{NICs: []wire.NIC{{MAC: "52:54:00:00:00:02", Address: "10.0.0.1"}}}),
		"no kernel":         {Kernel: []byte("nothing")},
		"old protocol":      kernel(put16(bootVersion, 0x205)),
		"32 bits only":      kernel(put16(bootXLoadFlags, 0)),
		"low only":          kernel(put16(bootXLoadFlags, xloadKernel64)),
		"crooked alignment": kernel(put16(bootAlignment, 3)),
		"no body":           kernel(func(b []byte) { b[bootHeader] = 100 }),
		"too large":         kernel(func(b []byte) { binary.LittleEndian.PutUint32(b[bootInitSize:], 0xf0000000) }),
		"long command line": {Kernel: bzImage(nil), Append: strings.Repeat("x", 2048)},
	} {
		m, r := machine(t, nil)
		if b, err := Build(m, r, u); err == nil {
			t.Errorf("%s: %s", name, b.Line)
		}
	}
	m, r := machine(t, map[string]string{"proc/cpuinfo": "apicid : 0\napicid : 2\napicid : 4\napicid : 6\n"})
	if _, err := Build(m, r, kernel(nil)); err == nil {
		t.Error("no CPU was free")
	}
}

// TestMemoryMap: the understudy has its own memory and no other, and no range overlaps another.
func TestMemoryMap(t *testing.T) {
	testMemoryMap(t, iomemReserved+kmem)
	testMemoryMap(t, strings.Replace(iomemReserved, "c0000000-febfffff", "c0000000-febfffff : Reserved\n  c0000000-febfffff", 1))
}

func testMemoryMap(t *testing.T, list string) {
	m, r := machine(t, map[string]string{"proc/iomem": list})
	all := memoryMap(m, r)
	for i, e := range all {
		if e.Type == e820RAM && !slices.ContainsFunc([]Range{r.Low, r.Mid, r.High}, func(o Range) bool { return o.Contains(e.Range) }) {
			t.Errorf("%v is the understudy's", e.Range)
		}
		if i > 0 && all[i-1].End > e.Start {
			t.Errorf("%v and %v overlap", all[i-1], e)
		}
	}
	for _, used := range Memory(m.Resources) {
		if !slices.ContainsFunc(all, func(e E820) bool { return e.Type == e820Reserved && e.Contains(used) }) {
			t.Errorf("%v of the active kernel is not reserved", used)
		}
	}
	for _, device := range []Range{{0x80000000, 0xb0000000}, {0xc0000000, 0xfec00000}, {0x380000000, 0xb80000000}} {
		if slices.ContainsFunc(all, func(e E820) bool { return e.overlaps(device) }) {
			t.Errorf("%v of devices is taken", device)
		}
	}
}

func TestIdentity(t *testing.T) {
	const at = 0x7be20000
	p := &paging{at: at, b: identity(at, Range{0x20000, 0x60000}, Range{0x7be00000, 0x7fe00000}, Range{0x120000000, 0x180000000})}
	for _, va := range []uint64{0, 0x20000, 0x3fffffff, 0x40000000, 0x7fdfffff, 0x120000000, 0x17fffffff} {
		if pa, ok := walk(p, 0, 4, va); !ok || pa != va {
			t.Errorf("%#x is at %#x, %v", va, pa, ok)
		}
	}
	for _, va := range []uint64{0x80000000, 0xfee00000, 0x180000000, 1 << 39} {
		if pa, ok := walk(p, 0, 4, va); ok {
			t.Errorf("%#x is mapped, to %#x", va, pa)
		}
	}
}

// TestParseKernel parses a stock kernel.
func TestParseKernel(t *testing.T) {
	path, _, err := dirs.Kernel("")
	if err != nil {
		t.Skip(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	k, err := ParseKernel(b)
	if err != nil || k.Alignment != huge || k.InitSize < uint64(len(k.Body)) {
		t.Errorf("%+v, %v", k, err)
	}
}

func FuzzParseKernel(f *testing.F) {
	f.Add(bzImage(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ParseKernel(b)
		if err != nil {
			return
		}
		if len(k.Body) <= entry64 || len(k.header) > bootMaxHeaderEnd-bootHeader {
			t.Errorf("a header of %d bytes, a body of %d", len(k.header), len(k.Body))
		}
		if _, err := k.params(boot{}); err != nil {
			t.Error(err)
		}
	})
}

// TestSameVersion: an image that was made by another version of this program does not protect.
func TestSameVersion(t *testing.T) {
	b, err := (&Config{Version: "v1"}).encode()
	if err != nil {
		t.Fatal(err)
	}
	c, err := decodeConfig(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SameVersion("v1"); err != nil {
		t.Error(err)
	}
	if err := c.SameVersion("v2"); err == nil || !strings.Contains(err.Error(), "metal install") {
		t.Error(err)
	}
}

func FuzzConfig(f *testing.F) {
	b, _ := (&Config{Memory: []Range{{1, 2}}}).encode()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeConfig(b)
		if err != nil {
			return
		}
		again, err := c.encode()
		if err != nil {
			return // it is too long
		}
		if _, err := decodeConfig(again); err != nil {
			t.Error(err)
		}
	})
}
