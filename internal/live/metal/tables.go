package metal

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// The understudy's own ACPI tables. They have CPUs and, later, a PCI bus, and nothing else
// of the machine, so that the understudy's kernel touches nothing of the active kernel's.

// Offsets into the FADT (ACPI 6.5, 5.2.9), its size in revision 5, and flags in it.
const (
	fadtDSDT       = 40
	fadtProfile    = 45
	fadtBootFlags  = 109
	fadtFlags      = 112
	fadtReset      = 116
	fadtResetValue = 128
	fadtXDSDT      = 140
	fadtSize       = 268

	fadtWBINVD         = 1 << 0
	fadtNoPowerButton  = 1 << 4
	fadtNoSleepButton  = 1 << 5
	fadtResetSupported = 1 << 10
	fadtPhysicalAPIC   = 1 << 19
	fadtHardwareReduce = 1 << 20

	bootNoVGA  = 1 << 2
	bootNoASPM = 1 << 4
	bootNoRTC  = 1 << 5

	profileServer = 4
)

// newTable returns a table with its header. finish must be called once its body is
// complete.
func newTable(signature string, revision byte, body []byte) []byte {
	b := make([]byte, acpiHeader, acpiHeader+len(body))
	copy(b, signature)
	b[8] = revision
	copy(b[10:], "UNDSTY")
	copy(b[16:], "METAL   ")
	binary.LittleEndian.PutUint32(b[24:], 1)
	copy(b[28:], "UNDS")
	binary.LittleEndian.PutUint32(b[32:], 1)
	return append(b, body...)
}

// finish sets length and checksum.
func finish(b []byte) []byte {
	binary.LittleEndian.PutUint32(b[4:], uint32(len(b)))
	b[9] = 0
	b[9] = -sum(b)
	return b
}

// fadt makes the understudy's kernel look for no hardware other than that in the DSDT.
func fadt(dsdt uint64, r Reset) []byte {
	b := newTable("FACP", 5, make([]byte, fadtSize-acpiHeader))
	binary.LittleEndian.PutUint32(b[fadtDSDT:], uint32(dsdt))
	binary.LittleEndian.PutUint64(b[fadtXDSDT:], dsdt)
	b[fadtProfile] = profileServer
	binary.LittleEndian.PutUint16(b[fadtBootFlags:], bootNoVGA|bootNoASPM|bootNoRTC)
	flags := uint32(fadtWBINVD | fadtNoPowerButton | fadtNoSleepButton | fadtPhysicalAPIC | fadtHardwareReduce)
	if r != (Reset{}) {
		flags |= fadtResetSupported
		copy(b[fadtReset:], r.Register[:])
		b[fadtResetValue] = r.Value
	}
	binary.LittleEndian.PutUint32(b[fadtFlags:], flags)
	return finish(b)
}

// madt lists the CPUs in that order, and no I/O APIC: that remains the active kernel's.
func madt(apic uint64, ids []uint32) []byte {
	body := binary.LittleEndian.AppendUint32(nil, uint32(apic))
	body = binary.LittleEndian.AppendUint32(body, 0) // no PC/AT compatible interrupt controller
	for uid, id := range ids {
		body = append(body, madtLocalAPIC, 8, byte(uid), byte(id))
		body = binary.LittleEndian.AppendUint32(body, 1)
	}
	return finish(newTable("APIC", 4, body))
}

// bridge is a PCI host bridge: its buses, and what addresses it passes on.
type bridge struct {
	Segment
	memory, ports []Range
}

// RevealDevice is the device of the understudy whose status makes its kernel look for PCI,
// once PCI is revealed: reading /sys/bus/acpi/devices/RevealDevice/status evaluates its
// _STA.
const RevealDevice = revealID + ":00"

const revealID = "USDY0001"

// dsdt has the host bridges. They are absent for as long as the 32-bit word at reveal is
// zero. When it is one, evaluating the _STA of the device RevealDevice notifies them.
func dsdt(reveal uint64, bridges []bridge) []byte {
	var devices, notify []aml
	for i, b := range bridges {
		name := fmt.Sprintf("P%03X", i) // there is no room for more than 4096
		devices = append(devices, b.device(name, i))
		notify = append(notify, amlNotify(rooted("_SB", name), 1)) // device check
	}
	devices = append(devices, amlDevice("USDY",
		amlName("_HID", amlString(revealID)),
		amlMethod("_STA", amlIfEqual(segment("STAT"), aml{0x01}, notify...), amlReturn(amlByte(0x0f))),
	))
	body := slices.Concat(amlMemoryField("PAGE", "STAT", reveal), amlScope(aml("\\_SB_"), devices...))
	return finish(newTable("DSDT", 2, body))
}

func (b *bridge) device(name string, uid int) aml {
	crs := qwordSpace(spaceBuses, Range{uint64(b.FirstBus), uint64(b.LastBus) + 1})
	for _, r := range b.ports {
		crs = append(crs, qwordSpace(spacePorts, r)...)
	}
	for _, r := range b.memory {
		crs = append(crs, qwordSpace(spaceMemory, r)...)
	}
	crs = append(crs, resourceEnd...)
	return amlDevice(name,
		amlName("_HID", eisaID("PNP0A08")), // PCI Express
		amlName("_CID", eisaID("PNP0A03")), // PCI
		amlName("_UID", amlWord(uint16(uid))),
		amlName("_SEG", amlWord(b.Group)),
		amlName("_BBN", amlByte(b.FirstBus)),
		amlName("_CBA", amlQword(b.Base)),
		amlName("_CRS", amlBuffer(crs)),
		amlMethod("_STA", amlIfEqual(segment("STAT"), aml{0x00}, amlReturn(aml{0x00})), amlReturn(amlByte(0x0f))),
	)
}

// xsdt lists tables.
func xsdt(tables ...uint64) []byte {
	var body []byte
	for _, at := range tables {
		body = binary.LittleEndian.AppendUint64(body, at)
	}
	return finish(newTable("XSDT", 1, body))
}

// rsdp is the root pointer, revision 2, at which a kernel begins to read the tables
// (5.2.5.3).
func rsdp(xsdt uint64) []byte {
	const first, size = 20, 36 // bytes of revision 1, which have a checksum of their own
	b := make([]byte, size)
	copy(b, "RSD PTR ")
	copy(b[9:], "UNDSTY")
	b[15] = 2
	binary.LittleEndian.PutUint32(b[20:], size)
	binary.LittleEndian.PutUint64(b[24:], xsdt)
	b[8] = -sum(b[:first])
	b[32] = -sum(b)
	return b
}

// acpiTables returns all of the understudy's tables one after the other, for that address.
// root is the address of the root pointer.
func acpiTables(at, reveal uint64, p Processors, r Reset, bridges []bridge) (b []byte, root uint64) {
	put := func(t []byte) uint64 {
		for len(b)%16 != 0 {
			b = append(b, 0)
		}
		where := at + uint64(len(b))
		b = append(b, t...)
		return where
	}
	f := put(fadt(put(dsdt(reveal, bridges)), r))
	x := put(xsdt(f, put(madt(p.APIC, p.IDs))))
	root = put(rsdp(x))
	return b, root
}

// mpPointer is where a kernel first looks for a floating pointer, and mpTables is what it
// finds: a pointer to a table, at that address, which has neither CPU nor I/O APIC
// (MultiProcessor Specification 1.4, chapter 4). Without it, a kernel that finds no I/O
// APIC in its MADT goes on to the firmware's table, and programs the active kernel's I/O
// APIC.
const mpPointer = 0x3e0

func mpTables(at uint64) (pointer, tables []byte) {
	entries := []byte{
		1, 0, 'I', 'S', 'A', ' ', ' ', ' ', // a bus, number 0
		3, 3, 0, 0, 0, 0, 0, 0, // ExtINT from its IRQ 0, to an I/O APIC that is not there
	}
	t := make([]byte, 44, 44+len(entries))
	copy(t, "PCMP")
	binary.LittleEndian.PutUint16(t[4:], uint16(44+len(entries)))
	t[6] = 4
	copy(t[8:], "UNDSTY  ")
	copy(t[16:], "METAL       ")
	binary.LittleEndian.PutUint16(t[34:], 2)
	binary.LittleEndian.PutUint32(t[36:], 0xfee00000)
	t = append(t, entries...)
	t[7] = -sum(t)
	p := make([]byte, 16)
	copy(p, "_MP_")
	binary.LittleEndian.PutUint32(p[4:], uint32(at))
	p[8], p[9] = 1, 4
	p[10] = -sum(p)
	return p, t
}
