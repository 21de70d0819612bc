package metal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// The firmware's tables of ACPI 6.5 (chapter 5), parsed as far as the understudy's own
// tables need their content.

// acpiHeader is the size of a description header (5.2.6), in bytes.
const acpiHeader = 36

// table checks a table: its signature, length and checksum.
func table(b []byte, signature string) ([]byte, error) {
	if len(b) < acpiHeader || string(b[:4]) != signature {
		return nil, fmt.Errorf("parse %s: no such table", signature)
	}
	n := binary.LittleEndian.Uint32(b[4:])
	if uint64(n) < acpiHeader || uint64(n) > uint64(len(b)) {
		return nil, fmt.Errorf("parse %s: its header says %d bytes, and the table has %d", signature, n, len(b))
	}
	b = b[:n]
	if sum(b) != 0 {
		return nil, fmt.Errorf("parse %s: its checksum is wrong", signature)
	}
	return b, nil
}

func sum(b []byte) byte {
	var s byte
	for _, v := range b {
		s += v
	}
	return s
}

// Segment is the memory-mapped configuration space of PCI buses (PCI Firmware
// Specification 3.3, 4.1.2, MCFG): one MiB for each bus.
type Segment struct {
	Base     uint64 `json:"base"` // of bus 0, whether or not that is in the segment
	Group    uint16 `json:"group"`
	FirstBus uint8  `json:"first"`
	LastBus  uint8  `json:"last"`
}

// ParseMCFG returns the segments of an MCFG table.
func ParseMCFG(b []byte) ([]Segment, error) {
	b, err := table(b, "MCFG")
	if err != nil {
		return nil, err
	}
	var out []Segment
	const entry = 16
	for at := acpiHeader + 8; at+entry <= len(b); at += entry {
		s := Segment{
			Base: binary.LittleEndian.Uint64(b[at:]), Group: binary.LittleEndian.Uint16(b[at+8:]),
			FirstBus: b[at+10], LastBus: b[at+11],
		}
		if s.Base%(1<<20) != 0 || s.Base == 0 || s.Base > 1<<52 || s.LastBus < s.FirstBus {
			return nil, fmt.Errorf("parse MCFG: segment %+v makes no sense", s)
		}
		out = append(out, s)
	}
	if len(out) == 0 {
		return nil, errors.New("parse MCFG: no segment")
	}
	return out, nil
}

// Processors are the CPUs of a machine, by the numbers of their local APICs.
type Processors struct {
	APIC uint64   // physical address of every CPU's own local APIC
	IDs  []uint32 // of those that are enabled, in the order of the table
}

// Types of entries of the MADT (5.2.12).
const (
	madtLocalAPIC         = 0
	madtLocalAPICOverride = 5
	madtLocalX2APIC       = 9
)

// maxAPIC is the highest APIC number that eight bits can address: 255 means all CPUs.
const maxAPIC = 254

// ParseMADT returns the CPUs in an APIC table. A CPU whose number has more than eight
// bits is an error: the ICR of the xAPIC does not reach it.
func ParseMADT(b []byte) (p Processors, err error) {
	if b, err = table(b, "APIC"); err != nil {
		return p, err
	}
	if len(b) < acpiHeader+8 {
		return p, errors.New("parse MADT: it is cut short")
	}
	p.APIC = uint64(binary.LittleEndian.Uint32(b[acpiHeader:]))
	for at := acpiHeader + 8; at < len(b); {
		if at+2 > len(b) || b[at+1] < 2 || at+int(b[at+1]) > len(b) {
			return p, fmt.Errorf("parse MADT: entry at %d is cut short", at)
		}
		e := b[at : at+int(b[at+1])]
		if err := p.entry(e); err != nil {
			return p, fmt.Errorf("parse MADT: entry at %d: %w", at, err)
		}
		at += len(e)
	}
	if len(p.IDs) == 0 {
		return p, errors.New("parse MADT: no CPU is enabled")
	}
	if p.APIC == 0 || p.APIC%4096 != 0 {
		return p, fmt.Errorf("parse MADT: the local APIC at %#x makes no sense", p.APIC)
	}
	return p, nil
}

func (p *Processors) entry(e []byte) error {
	const enabled = 1
	var id uint32
	switch {
	case e[0] == madtLocalAPIC && len(e) >= 8:
		if binary.LittleEndian.Uint32(e[4:])&enabled == 0 {
			return nil
		}
		id = uint32(e[3])
	case e[0] == madtLocalX2APIC && len(e) >= 16:
		if binary.LittleEndian.Uint32(e[8:])&enabled == 0 {
			return nil
		}
		id = binary.LittleEndian.Uint32(e[4:])
	case e[0] == madtLocalAPICOverride && len(e) >= 12:
		p.APIC = binary.LittleEndian.Uint64(e[4:])
		return nil
	default:
		return nil
	}
	switch twice := slices.Contains(p.IDs, id); {
	case e[0] == madtLocalAPIC && id > maxAPIC, id == ^uint32(0): // not a CPU, to Linux either (arch/x86/kernel/acpi/boot.c)
		return nil
	case id > maxAPIC:
		return fmt.Errorf("a CPU with APIC number %d, which cannot be reached in xAPIC mode", id)
	case twice && e[0] == madtLocalX2APIC: // firmware may list a CPU in both forms
		return nil
	case twice:
		return fmt.Errorf("APIC number %d is there twice", id)
	}
	p.IDs = append(p.IDs, id)
	return nil
}

// Reset is how a machine is reset (5.2.9, RESET_REG): a generic address and the value to
// write there. It is zero if the firmware does not say.
type Reset struct {
	Register [12]byte `json:"register"`
	Value    byte     `json:"value"`
}

// ParseFADT returns how the machine is reset.
func ParseFADT(b []byte) (r Reset, err error) {
	if b, err = table(b, "FACP"); err != nil {
		return r, err
	}
	if len(b) < fadtResetValue+1 || binary.LittleEndian.Uint32(b[fadtFlags:])&fadtResetSupported == 0 {
		return r, nil
	}
	copy(r.Register[:], b[fadtReset:])
	r.Value = b[fadtResetValue]
	return r, nil
}
