package metal

import (
	"encoding/binary"
	"slices"
	"testing/fstest"
)

// What a machine with four CPUs and 4 GiB reports, as QEMU's q35 does, shortened.
const (
	iomem = `00000000-00000fff : Reserved
00001000-0009fbff : System RAM
0009fc00-0009ffff : Reserved
000a0000-000bffff : PCI Bus 0000:00
000f0000-000fffff : Reserved
  000f0000-000fffff : System ROM
00100000-7ffdffff : System RAM
  1a600000-1b402186 : Kernel code
7ffe0000-7fffffff : Reserved
80000000-afffffff : PCI Bus 0000:00
b0000000-bfffffff : PCI MMCONFIG 0000 [bus 00-ff]
  b0000000-bfffffff : Reserved
c0000000-febfffff : PCI Bus 0000:00
  fe000000-fe003fff : 0000:00:01.0
fec00000-fec003ff : IOAPIC 0
fee00000-fee00fff : Local APIC
feffc000-feffffff : Reserved
100000000-17fffffff : System RAM
380000000-b7fffffff : PCI Bus 0000:00
`
	// The same, with the understudy's memory reserved.
	iomemReserved = `00000000-00000fff : Reserved
00001000-0001ffff : System RAM
00020000-0005ffff : Reserved
00060000-0009fbff : System RAM
0009fc00-0009ffff : Reserved
000f0000-000fffff : Reserved
00100000-7bdfffff : System RAM
7be00000-7fdfffff : Reserved
7fe00000-7ffdffff : System RAM
7ffe0000-7fffffff : Reserved
80000000-afffffff : PCI Bus 0000:00
b0000000-bfffffff : PCI MMCONFIG 0000 [bus 00-ff]
c0000000-febfffff : PCI Bus 0000:00
fee00000-fee00fff : Local APIC
100000000-11fffffff : System RAM
120000000-17fffffff : Reserved
380000000-b7fffffff : PCI Bus 0000:00
`
	ioports = `0000-0cf7 : PCI Bus 0000:00
  0000-001f : dma1
0cf8-0cff : PCI conf1
0d00-ffff : PCI Bus 0000:00
`
	// clocks is where a kernel lists its clocksources, and steady is the flags line of CPUs whose TSC
	// counts time evenly.
	clocks   = "sys/devices/system/clocksource/clocksource0/available_clocksource"
	steady   = "flags\t\t: fpu constant_tsc nonstop_tsc\n"
	cpuinfo  = "processor\t: 0\napicid\t\t: 0\ninitial apicid\t: 0\n\nprocessor\t: 1\napicid\t\t: 2\ninitial apicid\t: 2\n" + steady
	reserved = "understudy.metal=0x20000+0x40000,0x7be00000+0x4000000,0x120000000+0x60000000"
)

// firmwareMADT and firmwareMCFG are the firmware's tables of that machine, in which every second APIC
// number is used.
func firmwareMADT(ids ...uint32) []byte { return madt(0xfee00000, ids) }

func firmwareMCFG(s ...Segment) []byte {
	body := make([]byte, 8)
	for _, s := range s {
		body = binary.LittleEndian.AppendUint64(body, s.Base)
		body = binary.LittleEndian.AppendUint16(body, s.Group)
		body = append(body, s.FirstBus, s.LastBus, 0, 0, 0, 0)
	}
	return finish(newTable("MCFG", 1, body))
}

// root is that machine as files, with some of them replaced.
func root(replaced map[string]string) fstest.MapFS {
	files := fstest.MapFS{}
	for name, text := range map[string]string{
		"proc/cmdline": "quiet " + reserved + "\n", "proc/iomem": iomemReserved, "proc/ioports": ioports, "proc/cpuinfo": cpuinfo,
		clocks: "tsc hpet acpi_pm \n", "proc/sys/kernel/panic": "0\n", "proc/sys/vm/dirty_bytes": "0\n", "proc/sys/vm/dirty_ratio": "20\n",
		acpiDir + "APIC": string(firmwareMADT(0, 2, 4, 6)),
		acpiDir + "MCFG": string(firmwareMCFG(Segment{Base: 0xb0000000, LastBus: 255})),
		acpiDir + "FACP": string(fadt(0, Reset{Register: [12]byte{1, 8, 0, 1, 0xf9, 0x0c}, Value: 0x0f})),
	} {
		if r, ok := replaced[name]; ok {
			text = r
		}
		files[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return files
}

// bzImage is as much of a bzImage as is parsed.
func bzImage(edit func(b []byte)) []byte {
	b := make([]byte, 2*512+8192)
	b[bootHeader] = 1
	b[bootHeaderLen] = 0x268 - bootMagic
	copy(b[bootMagic:], "HdrS")
	binary.LittleEndian.PutUint16(b[bootVersion:], 0x20f)
	binary.LittleEndian.PutUint32(b[bootAlignment:], huge)
	binary.LittleEndian.PutUint16(b[bootXLoadFlags:], xloadKernel64|xloadAbove4G)
	binary.LittleEndian.PutUint32(b[bootCmdlineSize:], 2047)
	binary.LittleEndian.PutUint32(b[bootInitSize:], 32<<20)
	if edit != nil {
		edit(b)
	}
	return b
}

func clone(b []byte) []byte { return slices.Clone(b) }
