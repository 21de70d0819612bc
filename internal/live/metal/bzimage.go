package metal

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Offsets into a bzImage, which are offsets into struct boot_params too, and flags
// (Documentation/arch/x86/boot.rst; arch/x86/include/uapi/asm/bootparam.h).
const (
	bootRSDP         = 0x070
	bootExtRamdisk   = 0x0c0
	bootExtSize      = 0x0c4
	bootExtCmdline   = 0x0c8
	bootE820Entries  = 0x1e8
	bootHeader       = 0x1f1
	bootHeaderLen    = 0x201
	bootMagic        = 0x202
	bootVersion      = 0x206
	bootLoader       = 0x210
	bootLoadFlags    = 0x211
	bootRamdisk      = 0x218
	bootRamdiskSize  = 0x21c
	bootCmdline      = 0x228
	bootAlignment    = 0x230
	bootXLoadFlags   = 0x236
	bootCmdlineSize  = 0x238
	bootSubarch      = 0x23c
	bootInitSize     = 0x260
	bootE820         = 0x2d0
	bootParamsSize   = 4096
	bootMaxE820      = 128
	bootE820Entry    = 20
	bootMaxHeaderEnd = 0x290

	loadedHigh     = 1 << 0
	xloadKernel64  = 1 << 0
	xloadAbove4G   = 1 << 1
	loaderUnknown  = 0xff
	subarchNoPC    = 4     // X86_SUBARCH_CE4100: no i8042, no PNP BIOS (arch/x86/kernel/platform-quirks.c)
	leastVersion   = 0x20c // the first that has xloadflags
	entry64        = 0x200 // offset into the protected-mode part
	kernelAlignMax = 1 << 30
)

// Kernel is a bzImage.
type Kernel struct {
	header    []byte // from bootHeader on
	Body      []byte // its protected-mode part
	Alignment uint64
	InitSize  uint64 // bytes that it needs from its load address on
	maxLine   int    // longest command line, bytes
}

// ParseKernel parses a bzImage. It must have the 64-bit boot protocol and be loadable
// anywhere.
func ParseKernel(b []byte) (*Kernel, error) {
	fail := func(what string) (*Kernel, error) { return nil, errors.New("parse kernel: " + what) }
	if len(b) < bootMaxHeaderEnd || string(b[bootMagic:bootMagic+4]) != "HdrS" {
		return fail("it is no bzImage")
	}
	if v := binary.LittleEndian.Uint16(b[bootVersion:]); v < leastVersion {
		return nil, fmt.Errorf("parse kernel: boot protocol %#x is too old", v)
	}
	if x := binary.LittleEndian.Uint16(b[bootXLoadFlags:]); x&xloadKernel64 == 0 || x&xloadAbove4G == 0 {
		return fail("it cannot be loaded in 64-bit mode above 4 GiB")
	}
	setup := int(b[bootHeader])
	if setup == 0 {
		setup = 4
	}
	body, end := (setup+1)*512, bootMagic+int(b[bootHeaderLen])
	if body+entry64 >= len(b) || end > bootMaxHeaderEnd || end < bootInitSize+4 {
		return fail("it is cut short")
	}
	k := &Kernel{
		header: b[bootHeader:end], Body: b[body:],
		Alignment: uint64(binary.LittleEndian.Uint32(b[bootAlignment:])),
		InitSize:  uint64(binary.LittleEndian.Uint32(b[bootInitSize:])),
		maxLine:   int(binary.LittleEndian.Uint32(b[bootCmdlineSize:])),
	}
	if a := k.Alignment; a < 4096 || a > kernelAlignMax || a&(a-1) != 0 || k.InitSize < uint64(len(k.Body)) {
		return fail("its alignment or size makes no sense")
	}
	return k, nil
}

// E820 is a range of memory, with its type as in the BIOS call of that name.
type E820 struct {
	Range
	Type uint32
}

// Types of memory (ACPI 6.5, table 15.4).
const (
	e820RAM      = 1
	e820Reserved = 2
	e820ACPI     = 3
)

// boot is what a kernel is told at its start.
type boot struct {
	rsdp    uint64
	cmdline uint64
	image   Range // initramfs
	memory  []E820
}

// params is struct boot_params.
func (k *Kernel) params(w boot) ([]byte, error) {
	if len(w.memory) > bootMaxE820 {
		return nil, fmt.Errorf("%d ranges of memory are more than %d", len(w.memory), bootMaxE820)
	}
	b := make([]byte, bootParamsSize)
	copy(b[bootHeader:], k.header)
	b[bootLoader] = loaderUnknown
	b[bootLoadFlags] |= loadedHigh
	low := func(at int, v uint64) { binary.LittleEndian.PutUint32(b[at:], uint32(v)) }
	low(bootRamdisk, w.image.Start)
	low(bootExtRamdisk, w.image.Start>>32)
	low(bootRamdiskSize, w.image.Len())
	low(bootExtSize, w.image.Len()>>32)
	low(bootCmdline, w.cmdline)
	low(bootExtCmdline, w.cmdline>>32)
	low(bootSubarch, subarchNoPC)
	binary.LittleEndian.PutUint64(b[bootRSDP:], w.rsdp)
	b[bootE820Entries] = byte(len(w.memory))
	for i, m := range w.memory {
		e := b[bootE820+i*bootE820Entry:]
		binary.LittleEndian.PutUint64(e, m.Start)
		binary.LittleEndian.PutUint64(e[8:], m.Len())
		binary.LittleEndian.PutUint32(e[16:], m.Type)
	}
	return b, nil
}
