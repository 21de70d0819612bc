package metal

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/live/wire"
)

// taking is the machine of the fixtures, as seen by an understudy that has taken over there: CPU 4 was
// its own, CPU 2 the dead kernel's; CPU 6 is free, and CPU 0 is parked.
func taking() (*Self, map[string]string) {
	dead := Reservation{Range{0x20000, 0x60000}, Range{0x7be00000, 0x7fe00000}, Range{0x120000000, 0x180000000}}
	s := &Self{reservation: dead, Config: &Config{
		Memory:   []Range{{0x1000, 0x20000}, {0x60000, 0x9fc00}, {0x100000, 0x7be00000}, {0x7fe00000, 0x7ffe0000}, {0x100000000, 0x120000000}},
		Segments: []Segment{{Base: 0xb0000000, LastBus: 255}},
	}}
	return s, map[string]string{
		"proc/cmdline": UnderstudyParameter + " " + Parameter + dead.String(),
		"proc/cpuinfo": "apicid : 4\napicid : 2\n",
		"proc/iomem": `00000000-0002ffff : Reserved
00030000-0005ffff : System RAM
00060000-0009ffff : Reserved
000f0000-7bdfffff : Reserved
7be00000-7be0ffff : ACPI Tables
7be10000-7bffffff : Reserved
7c000000-7fdfffff : System RAM
7fe00000-7fffffff : Reserved
80000000-afffffff : PCI Bus 0000:00
b0000000-bfffffff : Reserved
c0000000-febfffff : PCI Bus 0000:00
100000000-11fffffff : Reserved
120000000-17fffffff : System RAM
`,
		acpiDir + "APIC": string(firmwareMADT(0, 4, 2, 6)),
		acpiDir + "MCFG": "",
	}
}

// TestMachineAgain: an understudy of an understudy is built in the dead kernel's memory, on the free CPU,
// and knows that the machine's boot CPU is parked. Its own successor is built where the first understudy
// was.
func TestMachineAgain(t *testing.T) {
	s, files := taking()
	m, err := s.Machine(root(files))
	if err != nil {
		t.Fatal(err)
	}
	r, err := m.Reservation()
	if err != nil || r.check() != nil || r.Left(m.Resources) != nil {
		t.Fatalf("%v: %v, %v, %v", r, err, r.check(), r.Left(m.Resources))
	}
	b, err := Build(m, r, &Understudy{Kernel: bzImage(nil), Image: []byte("image"), TSC: 2_500_000})
	if err != nil {
		t.Fatal(err)
	}
	if b.CPU != 6 || !slices.Contains(strings.Fields(b.Line), "disable_cpu_apicid=0") {
		t.Errorf("CPU %d, %s", b.CPU, b.Line)
	}
	c, err := decodeConfig(b.find(t, r.Mid.Start+midConfig))
	if err != nil || c.BootCPU != 0 || !c.Parked || c.CPUs() != 2 || !slices.Equal(c.Others, []uint32{4, 2}) || *c.Former != s.reservation || len(c.Memory) != 3 {
		t.Errorf("%+v, %v", c, err)
	}
	for _, p := range b.Pieces {
		in := Range{p.At, p.At + uint64(len(p.Bytes))}
		for _, used := range append(Memory(m.Resources), s.reservation.Low) {
			if in.overlaps(used) {
				t.Errorf("%v overlaps %v", in, used)
			}
		}
	}

	s = &Self{reservation: r, Config: c}
	files["proc/iomem"] = strings.NewReplacer("System RAM", "Reserved", "ACPI Tables", "Reserved").Replace(files["proc/iomem"])
	if m, err = s.Machine(root(files)); err != nil {
		t.Fatal(err)
	}
	first, _ := taking()
	if third, err := m.Reservation(); err != nil || third != first.reservation {
		t.Errorf("the third is in %v, %v", third, err)
	}
	u := &Understudy{Kernel: bzImage(nil), Image: []byte("image"), TSC: 2_500_000}
	if b, err = Build(m, first.reservation, u); err != nil {
		t.Fatal(err)
	}
	cell := Range{first.reservation.Low.Start + lowCell, first.reservation.Low.Start + lowMemory}
	for _, p := range b.Pieces {
		if in := (Range{p.At, p.At + uint64(len(p.Bytes))}); in.overlaps(cell) {
			t.Errorf("%v overlaps the boot CPU's cell", in)
		}
	}
	for _, e := range memoryMap(m, first.reservation) {
		if e.Type == e820RAM && e.overlaps(cell) {
			t.Errorf("%v is memory, with the boot CPU's cell in it", e.Range)
		}
	}
}

// TestMachineAgainRefused: a dead kernel that had too little memory.
func TestMachineAgainRefused(t *testing.T) {
	s, files := taking()
	s.Config.Memory = []Range{{0x60000, 0x9fc00}, {0x100000, 0x10000000}}
	if m, err := s.Machine(root(files)); err == nil {
		t.Errorf("%+v", m.reserved)
	}
}

// TestNewFile: files that are not taken over, or have changed, start no other understudy.
func TestNewFile(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	path, link := filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "link")
	if err := os.WriteFile(path, []byte("kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("vmlinuz", link); err != nil {
		t.Fatal(err)
	}
	role := wire.Config{Disks: []wire.Disk{{Mount: "/proc"}, {Mount: dir}}}
	f, err := NewFile(link, []byte("kernel"), role)
	if err != nil || f.Path != path {
		t.Fatalf("%+v, %v", f, err)
	}
	if b, err := f.read(""); err != nil || string(b) != "kernel" {
		t.Errorf("%q, %v", b, err)
	}
	if err := os.WriteFile(path, []byte("Kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	if b, err := f.read(""); err == nil {
		t.Errorf("%q has not changed", b)
	}
	if f, err := NewFile(path, nil, wire.Config{Disks: []wire.Disk{{Mount: "/proc"}}}); err == nil {
		t.Errorf("%+v is on a disk that is taken over", f)
	}
}
