package metal

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/wire"
)

// Understudy describes the understudy that is to be started.
type Understudy struct {
	Kernel []byte // a bzImage
	Image  []byte // initramfs
	Append string // further kernel parameters
	TSC    uint64 // kHz, as the active kernel has it
	Config Config // Role is given; Build fills in the rest
}

// Piece is bytes, and the physical address that they go to.
type Piece struct {
	At    uint64
	Bytes []byte
}

// Built is everything that must be in memory before a CPU is started.
type Built struct {
	Pieces []Piece
	CPU    uint32 // APIC number of the CPU to start
	Vector byte   // of its start-up IPI
	Line   string // the understudy's command line
}

// Build makes an understudy for this machine, on its free CPUs.
func Build(m *Machine, r Reservation, u *Understudy) (*Built, error) {
	b, err := build(m, r, u)
	if err != nil {
		return nil, fmt.Errorf("build understudy: %w", err)
	}
	return b, nil
}

// taken are the types of file systems that can be taken over.
var taken = []string{"ext4", "ext3", "ext2", "xfs", "btrfs"}

// checkRole refuses a role that an understudy could not carry out.
func checkRole(role *wire.Config) error {
	if role.NFS != nil {
		if err := checkNFS(role); err != nil {
			return err
		}
	}
	for _, d := range role.Disks {
		if d.Name == "" || !path.IsAbs(d.Mount) || !slices.Contains(taken, d.Type) {
			return fmt.Errorf("disk %q of type %q on %q: a serial number, one of %v and a directory are needed", d.Name, d.Type, d.Mount, taken)
		}
		if err := checkPoints(role.Disks, d); err != nil {
			return err
		}
		if _, of, volume := strings.Cut(d.Name, volumeSuffix); volume != (d.Volume != "") || volume && of != (disk.Where{Volume: d.Volume}).Mapper() {
			return fmt.Errorf("disk %q with logical volume %q: its name must end in %s and the volume's name as it is in /dev/mapper, or neither must be there", d.Name, d.Volume, volumeSuffix)
		}
	}
	for _, n := range role.NICs {
		if err := checkNIC(n); err != nil {
			return err
		}
	}
	return nil
}

func build(m *Machine, r Reservation, u *Understudy) (*Built, error) {
	if err := checkRole(&u.Config.Role); err != nil {
		return nil, err
	}
	free := m.Free()
	if len(free) == 0 {
		return nil, errors.New("the running kernel uses all CPUs: see maxcpus= of understudy metal install")
	}
	kernel, err := ParseKernel(u.Kernel)
	if err != nil {
		return nil, err
	}
	bridges, err := m.bridges()
	if err != nil {
		return nil, err
	}
	c := u.Config
	c.Memory, c.APIC, c.Segments = Memory(m.Resources), m.Processors.APIC, m.Segments
	for _, b := range bridges {
		c.Roots = append(c.Roots, b.Segment)
	}
	c.BootCPU, c.Parked, c.Others, c.Former = m.Boot, m.Parked, m.others(), m.own
	config, err := c.encode()
	if err != nil {
		return nil, err
	}
	at, image, err := place(r.High, kernel, u.Image)
	if err != nil {
		return nil, err
	}
	// The machine's boot CPU comes first: the kernel leaves it out (disable_cpu_apicid=, and by itself
	// since 6.9, topology_is_... "Crash kernel detected").
	p := Processors{APIC: m.Processors.APIC, IDs: slices.Concat([]uint32{m.Boot}, free, m.others())}
	tables, root := acpiTables(r.Mid.Start+midACPI, r.StatusPage()+statusReveal, p, m.Reset, bridges)
	line := commandLine(m, r, u, len(free))
	params, err := kernel.params(boot{rsdp: root, cmdline: r.Mid.Start + midCmdline, image: image, memory: memoryMap(m, r)})
	if err != nil {
		return nil, err
	}
	if len(line)+1 > min(kernel.maxLine+1, pageBytes) || len(tables) > midParams-midACPI {
		return nil, errors.New("the command line, or the list of CPUs and buses, is too long")
	}
	paging := identity(r.Mid.Start+midPaging, r.Low, r.Mid, r.High)
	if len(paging) > midBeat-midPaging {
		return nil, errors.New("the understudy's memory is too large for its first page tables")
	}
	pointer, mp := mpTables(r.Mid.Start + midMP)
	start := r.Low.Start + lowTrampoline
	e := entry{root: uint32(r.Mid.Start + midPaging), params: r.Mid.Start + midParams, kernel: at + entry64}
	return &Built{
		CPU: free[0], Vector: byte(start >> 12), Line: line,
		Pieces: []Piece{
			{mpPointer, pointer},
			{start, trampoline(uint32(start), e)},
			{r.Low.Start + lowPark, parkCode(uint32(r.Low.Start + lowPark))},
			{r.Mid.Start + midACPI, tables},
			{r.Mid.Start + midParams, params},
			{r.Mid.Start + midCmdline, append([]byte(line), 0)},
			{r.Mid.Start + midMP, mp},
			{r.Mid.Start + midPaging, paging},
			{r.BeatPage(), make([]byte, pageBytes)},
			{r.StatusPage(), make([]byte, pageBytes)},
			{r.Mid.Start + midConfig, config},
			{r.Mid.Start + midLog, make([]byte, pageBytes)},
			{at, kernel.Body},
			{image.Start, u.Image},
		},
	}, nil
}

// place puts the kernel at the bottom of the memory, and the image at its top.
func place(high Range, k *Kernel, image []byte) (at uint64, where Range, err error) {
	at = (high.Start + k.Alignment - 1) &^ (k.Alignment - 1)
	end := high.End - uint64(len(image))
	where = Range{end &^ (pageBytes - 1), end&^(pageBytes-1) + uint64(len(image))}
	if uint64(len(image)) > high.Len() || at+k.InitSize > where.Start {
		return 0, where, fmt.Errorf("a kernel and an image of %d MiB do not fit into %d MiB", (k.InitSize+uint64(len(image)))>>20, high.Len()>>20)
	}
	return at, where, nil
}

// ioAPICs is where I/O APICs, local APICs and the firmware's ROM are on every PC.
var ioAPICs = Range{0xfec00000, fourGiB}

// memoryMap is the memory map that the understudy sees: its own memory is RAM, and all else that is not
// a device's is reserved. A kernel gives a host bridge no addresses that are reserved
// (arch/x86/kernel/resource.c, remove_e820_regions).
func memoryMap(m *Machine, r Reservation) []E820 {
	low, mid := r.Low.Start+lowMemory, r.Mid.Start
	out := []E820{
		{Range{r.Low.Start, low}, e820Reserved},
		{Range{low, r.Low.End}, e820RAM},
		{Range{mid, mid + midParams}, e820ACPI},
		{Range{mid + midParams, mid + midMemory}, e820Reserved},
		{Range{mid + midMemory, r.Mid.End}, e820RAM},
		{r.High, e820RAM},
	}
	reserved, devices := Memory(m.Resources), []Range(nil)
	for _, res := range m.Resources {
		switch {
		case res.Depth > 0:
		case res.Name == "Reserved", strings.HasPrefix(res.Name, "ACPI "), strings.HasPrefix(res.Name, "Unusable"):
			reserved = append(reserved, res.Range)
		}
	}
	for _, w := range windows(m.Resources, 1<<20) {
		devices = append(devices, w.Range)
	}
	others := []Range{ioAPICs}
	for _, o := range union(reserved) {
		others = append(others, without(o, devices...)...)
	}
	for _, s := range m.Segments {
		others = append(others, Range{s.Base + uint64(s.FirstBus)<<20, s.Base + (uint64(s.LastBus)+1)<<20})
	}
	for _, o := range union(others) {
		for _, rest := range without(o, r.Low, r.Mid, r.High) {
			out = append(out, E820{rest, e820Reserved})
		}
	}
	slices.SortFunc(out, func(a, b E820) int { return cmp.Compare(a.Start, b.Start) })
	return out
}

// union returns the ranges in ascending order, with ranges that touch or overlap merged.
func union(all []Range) []Range {
	slices.SortFunc(all, func(a, b Range) int { return cmp.Compare(a.Start, b.Start) })
	var out []Range
	for _, r := range all {
		if n := len(out); n > 0 && r.Start <= out[n-1].End {
			out[n-1].End = max(out[n-1].End, r.End)
			continue
		}
		out = append(out, r)
	}
	return out
}

// without returns what is left of a range without the holes.
func without(r Range, holes ...Range) []Range {
	left := []Range{r}
	for _, h := range holes {
		var next []Range
		for _, l := range left {
			if !l.overlaps(h) {
				next = append(next, l)
				continue
			}
			if l.Start < h.Start {
				next = append(next, Range{l.Start, h.Start})
			}
			if h.End < l.End {
				next = append(next, Range{h.End, l.End})
			}
		}
		left = next
	}
	return left
}

// commandLine keeps the understudy's kernel away from what belongs to the active kernel.
func commandLine(m *Machine, r Reservation, u *Understudy, cpus int) string {
	return strings.Join([]string{
		"maxcpus=" + strconv.Itoa(cpus),
		"possible_cpus=" + strconv.Itoa(max(9, len(m.Processors.IDs))),
		"disable_cpu_apicid=" + strconv.Itoa(int(m.Boot)), // the machine's boot CPU
		"no_ipi_broadcast=1", "apic_extnmi=none", "iomem=relaxed",
		// The local APIC's timer is calibrated by the TSC: no PIT, HPET or PM timer is needed.
		"tsc_early_khz=" + strconv.FormatUint(u.TSC, 10), "tsc=reliable", "clocksource=tsc",
		"8250.nr_uarts=0", "pci=noearly",
		"panic=0", "oops=panic", "random.trust_cpu=on", "quiet",
		UnderstudyParameter, Parameter + r.String(), u.Append,
	}, " ")
}
