package metal

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

// Machine is what this machine, and the kernel that runs it, say about themselves.
type Machine struct {
	Cmdline    string // of the running kernel
	Resources  []Resource
	Ports      []Resource
	Processors Processors
	Online     []uint32 // APIC numbers of the running kernel's CPUs
	Boot       uint32   // APIC number of the machine's boot CPU
	Parked     bool     // the boot CPU is nobody's any more: an earlier kernel has died on it
	Segments   []Segment
	Reset      Reset

	reserved *Reservation // for an understudy, if the kernel's command line does not have it
	own      *Reservation // the running kernel's, if it is an understudy that has taken over
}

// Where the firmware's tables are.
const acpiDir = "sys/firmware/acpi/tables/"

// Look reads what the machine says, from a root directory: os.DirFS("/").
func Look(root fs.FS) (*Machine, error) {
	segments, err := fs.ReadFile(root, acpiDir+"MCFG")
	if err != nil {
		return nil, fmt.Errorf("look at machine: %w", err)
	}
	m := new(Machine)
	if m.Segments, err = ParseMCFG(segments); err != nil {
		return nil, fmt.Errorf("look at machine: /%sMCFG: %w", acpiDir, err)
	}
	if err := m.look(root); err != nil {
		return nil, err
	}
	m.Boot = m.Online[0]
	return m, nil
}

// look reads all but the segments: an understudy's kernel has no table of them.
func (m *Machine) look(root fs.FS) error {
	line, err := fs.ReadFile(root, "proc/cmdline")
	if err != nil {
		return fmt.Errorf("look at machine: %w", err)
	}
	m.Cmdline = strings.TrimSpace(string(line))
	err = errors.Join(
		parseFile(root, "proc/iomem", &m.Resources, parseResources),
		parseFile(root, "proc/ioports", &m.Ports, parseResources),
		parseFile(root, acpiDir+"APIC", &m.Processors, ParseMADT),
		parseFile(root, acpiDir+"FACP", &m.Reset, ParseFADT),
		parseFile(root, "proc/cpuinfo", &m.Online, parseCPUInfo),
	)
	if err != nil {
		return fmt.Errorf("look at machine: %w", err)
	}
	return m.check()
}

// Reservation returns the memory of an understudy beside the running kernel.
func (m *Machine) Reservation() (Reservation, error) {
	if m.reserved != nil {
		return *m.reserved, nil
	}
	return ParseReservation(m.Cmdline)
}

func parseFile[T any](root fs.FS, name string, into *T, parse func([]byte) (T, error)) error {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return err
	}
	if *into, err = parse(b); err != nil {
		return fmt.Errorf("/%s: %w", name, err)
	}
	return nil
}

func parseResources(b []byte) ([]Resource, error) { return ParseResources(bytes.NewReader(b)) }

// parseCPUInfo takes the APIC numbers out of /proc/cpuinfo (arch/x86/kernel/cpu/proc.c). The machine's
// boot CPU comes first, and must be online. A CPU whose number differs from its initial one, which CPUID
// reports (initial apicid; older AMD CPUs), is refused: when it is parked, it reports under the number
// of another CPU.
func parseCPUInfo(b []byte) ([]uint32, error) {
	var ids []uint32
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !slices.Contains([]string{"processor", "apicid", "initial apicid"}, key) {
			continue
		}
		id, err := strconv.ParseUint(value, 10, 32)
		switch {
		case err != nil:
			return nil, fmt.Errorf("%s: %w", key, err)
		case key == "processor" && len(ids) == 0 && id != 0:
			return nil, errors.New("the machine's boot CPU, CPU 0, is offline, and would be given to the understudy: bring it online")
		case key == "apicid":
			ids = append(ids, uint32(id))
		case key == "initial apicid" && (len(ids) == 0 || uint32(id) != ids[len(ids)-1]):
			return nil, fmt.Errorf("the apicid of a CPU differs from its initial apicid %d (/proc/cpuinfo): such CPUs cannot be told apart when they are stopped", id)
		}
	}
	if len(ids) == 0 {
		return nil, errors.New("no CPU has an APIC number")
	}
	return ids, nil
}

func (m *Machine) check() error {
	for _, id := range m.Online {
		if !slices.Contains(m.Processors.IDs, id) {
			return fmt.Errorf("look at machine: the CPU with APIC number %d is not in the firmware's MADT", id)
		}
	}
	return nil
}

// Free returns the APIC numbers of the CPUs that the running kernel does not use, without the machine's
// boot CPU.
func (m *Machine) Free() []uint32 {
	return slices.DeleteFunc(slices.Clone(m.Processors.IDs), func(id uint32) bool { return id == m.Boot || slices.Contains(m.Online, id) })
}

// others returns the APIC numbers of the running kernel's CPUs, without the machine's boot CPU.
func (m *Machine) others() []uint32 {
	return slices.DeleteFunc(slices.Clone(m.Online), func(id uint32) bool { return id == m.Boot })
}

// bridges returns the PCI host bridges. Their names in the lists of resources are those of their root
// buses, "PCI Bus GROUP:BUS" (drivers/pci/probe.c, pci_register_host_bridge).
func (m *Machine) bridges() ([]bridge, error) {
	var out []bridge
	at := func(name string) *bridge {
		text, ok := strings.CutPrefix(name, busPrefix)
		group, bus, ok2 := strings.Cut(text, ":")
		g, err := strconv.ParseUint(group, 16, 16)
		b, err2 := strconv.ParseUint(bus, 16, 8)
		if !ok || !ok2 || err != nil || err2 != nil {
			return nil
		}
		for i := range out {
			if out[i].Group == uint16(g) && out[i].FirstBus == uint8(b) {
				return &out[i]
			}
		}
		out = append(out, bridge{Segment: Segment{Group: uint16(g), FirstBus: uint8(b)}})
		return &out[len(out)-1]
	}
	for _, r := range windows(m.Resources, 1<<20) { // below that is VGA
		if b := at(r.Name); b != nil {
			b.memory = append(b.memory, r.Range)
		}
	}
	for _, r := range windows(m.Ports, 0) {
		if b := at(r.Name); b != nil {
			b.ports = append(b.ports, r.Range)
		}
	}
	out = slices.DeleteFunc(out, func(b bridge) bool { return len(b.memory) == 0 }) // these are buses below a bridge
	slices.SortFunc(out, func(a, b bridge) int {
		return int(a.Group)<<8 + int(a.FirstBus) - int(b.Group)<<8 - int(b.FirstBus)
	})
	for i := range out {
		if err := out[i].place(m.Segments, out[i+1:]); err != nil {
			return nil, err
		}
	}
	if len(out) == 0 {
		return nil, errors.New("find PCI: no host bridge is in /proc/iomem")
	}
	return out, nil
}

// busPrefix begins the names of the resources of PCI buses.
const busPrefix = "PCI Bus "

// windows returns the resources that host bridges pass on, from an address on: those of a bus that are
// not inside another bus's. If firmware has reserved all of such a resource, the list has it inside the
// reserved range (arch/x86/kernel/e820.c, e820__reserve_resources_late).
func windows(all []Resource, from uint64) (out []Resource) {
	for _, r := range all {
		behind := len(out) > 0 && out[len(out)-1].Depth < r.Depth && out[len(out)-1].Contains(r.Range)
		if strings.HasPrefix(r.Name, busPrefix) && r.Start >= from && !behind {
			out = append(out, r)
		}
	}
	return out
}

// place gives a bridge its configuration space. Its buses end where the next one's begin.
func (b *bridge) place(segments []Segment, others []bridge) error {
	for _, s := range segments {
		if s.Group != b.Group || b.FirstBus < s.FirstBus || b.FirstBus > s.LastBus {
			continue
		}
		b.Base, b.LastBus = s.Base, s.LastBus
		if len(others) > 0 && others[0].Group == b.Group {
			b.LastBus = min(b.LastBus, others[0].FirstBus-1)
		}
		return nil
	}
	return fmt.Errorf("find PCI: no memory-mapped configuration space for bus %04x:%02x", b.Group, b.FirstBus)
}
