package metal

import "encoding/binary"

// The code that a CPU runs on its way into a kernel, or out of one, as bytes, with the
// instructions beside them (Intel SDM volume 2; AT&T order of operands).

// Offsets into the trampoline's page.
const (
	trampGDT     = 0x100
	trampGDTR    = 0x140
	trampReached = 0x180 // 32 bits: reachedKernel once the CPU is about to enter the kernel
)

const reachedKernel = 0x4c414554 // "TEAL"

// Selectors of the trampoline's segments. The 64-bit boot protocol asks for 0x10 and 0x18
// (Documentation/arch/x86/boot.rst, "64-bit BOOT PROTOCOL").
const (
	selector32   = 0x08
	selector64   = 0x10
	selectorData = 0x18
)

// segmentLong is the descriptor of 64-bit code.
const segmentLong = 0x00af9a000000ffff

// code collects the instructions of a page.
type code struct {
	b  []byte
	at uint32 // physical address of the page
}

func (c *code) put(b ...byte) { c.b = append(c.b, b...) }

func (c *code) put16(v uint16) { c.b = binary.LittleEndian.AppendUint16(c.b, v) }

func (c *code) put32(v uint32) { c.b = binary.LittleEndian.AppendUint32(c.b, v) }

func (c *code) put64(v uint64) { c.b = binary.LittleEndian.AppendUint64(c.b, v) }

// realMode is the start of code that is entered in real mode with CS = page / 16: it turns
// interrupts off, sets DS = CS, and turns caches on, which INIT leaves off (SDM volume 3, table
// 10-1): a CPU with its caches off may turn them off for the other CPUs of its core too
// (9.7.13.1). It leaves CR0 in %eax.
func (c *code) realMode() {
	c.put(0xfa)             // cli
	c.put(0xfc)             // cld
	c.put(0x8c, 0xc8)       // mov %cs, %ax
	c.put(0x8e, 0xd8)       // mov %ax, %ds
	c.put(0x0f, 0x20, 0xc0) // mov %cr0, %eax
	c.put(0x66, 0x25)       // and $~(CD|NW), %eax
	c.put32(0x9fffffff)
	c.put(0x0f, 0x22, 0xc0) // mov %eax, %cr0
}

// entry is how a kernel is entered in 64-bit mode.
type entry struct {
	root   uint32 // page tables: identity mappings
	params uint64 // struct boot_params
	kernel uint64 // its 64-bit entry point
}

// trampoline is the page in which a CPU starts at a start-up IPI: from real mode through
// protected to long mode, and into the kernel.
func trampoline(at uint32, e entry) []byte {
	c := &code{at: at}
	c.realMode()
	c.put(0x66, 0x0f, 0x01, 0x16) // lgdtl trampGDTR
	c.put16(trampGDTR)
	c.put(0x66, 0x83, 0xc8, 0x01) // or $PE, %eax
	c.put(0x0f, 0x22, 0xc0)       // mov %eax, %cr0
	c.put(0x66, 0xea)             // ljmpl $selector32, $protected
	protected := at + uint32(len(c.b)) + 6
	c.put32(protected)
	c.put16(selector32)

	c.put(0xb8) // mov $selectorData, %eax
	c.put32(selectorData)
	c.put(0x8e, 0xd8) // mov %eax, %ds
	c.put(0x8e, 0xc0) // mov %eax, %es
	c.put(0x8e, 0xd0) // mov %eax, %ss
	c.put(0xb8)       // mov $PAE, %eax
	c.put32(1 << 5)
	c.put(0x0f, 0x22, 0xe0) // mov %eax, %cr4
	c.put(0xb8)             // mov $root, %eax
	c.put32(e.root)
	c.put(0x0f, 0x22, 0xd8) // mov %eax, %cr3
	c.put(0xb9)             // mov $IA32_EFER, %ecx
	c.put32(0xc0000080)
	c.put(0x0f, 0x32) // rdmsr
	c.put(0x0d)       // or $LME, %eax
	c.put32(1 << 8)
	c.put(0x0f, 0x30)       // wrmsr
	c.put(0x0f, 0x20, 0xc0) // mov %cr0, %eax
	c.put(0x0d)             // or $(PG|PE), %eax
	c.put32(1<<31 | 1)
	c.put(0x0f, 0x22, 0xc0) // mov %eax, %cr0
	c.put(0xea)             // ljmp $selector64, $long
	long := at + uint32(len(c.b)) + 6
	c.put32(long)
	c.put16(selector64)

	c.put(0xc7, 0x04, 0x25) // movl $reachedKernel, trampReached
	c.put32(at + trampReached)
	c.put32(reachedKernel)
	c.put(0x48, 0xbe) // movabs $params, %rsi
	c.put64(e.params)
	c.put(0x48, 0xb8) // movabs $kernel, %rax
	c.put64(e.kernel)
	c.put(0xff, 0xe0) // jmp *%rax

	page := make([]byte, 4096)
	copy(page, c.b)
	for i, d := range []uint64{
		0,
		0x00cf9a000000ffff, // selector32: code, 4 GiB
		segmentLong,        // selector64
		0x00cf92000000ffff, // selectorData
	} {
		binary.LittleEndian.PutUint64(page[trampGDT+8*i:], d)
	}
	binary.LittleEndian.PutUint16(page[trampGDTR:], 4*8-1)
	binary.LittleEndian.PutUint32(page[trampGDTR+2:], at+trampGDT)
	return page
}

// Offsets into the page that CPUs are parked in.
const (
	parkFlags = 0x400 // a parked CPU sets the byte of its APIC number
	parkIDTR  = 0x7f0
	parkIDT   = 0x800 // of real mode: an offset and a segment for each vector
	vectors   = 32    // number of vectors of exceptions and NMIs
)

// parkCode is the page, at that address, that takes a CPU out of a kernel: the CPU reports that
// it is here, and halts with interrupts off, until it is started again. An NMI, which the other
// CPUs of a dying kernel may send, leads it back to the HLT: the firmware's vectors, at 0, may
// not be there any more.
func parkCode(at uint32) []byte {
	c := &code{at: at}
	c.realMode()
	c.put(0x0f, 0x01, 0x1e) // lidt parkIDTR
	c.put16(parkIDTR)
	c.put(0x66, 0xb8) // mov $1, %eax
	c.put32(1)
	c.put(0x0f, 0xa2)           // cpuid
	c.put(0x66, 0xc1, 0xeb, 24) // shr $24, %ebx: the APIC number
	c.put(0xc6, 0x87)           // movb $1, parkFlags(%bx)
	c.put16(parkFlags)
	c.put(1)
	halt := uint32(len(c.b))
	c.put(0xf4)       // hlt
	c.put(0xeb, 0xfd) // jmp to it
	page := make([]byte, 4096)
	copy(page, c.b)
	binary.LittleEndian.PutUint16(page[parkIDTR:], vectors*4-1)
	binary.LittleEndian.PutUint32(page[parkIDTR+2:], at+parkIDT)
	for n := range vectors {
		binary.LittleEndian.PutUint32(page[parkIDT+4*n:], at>>4<<16|halt)
	}
	return page
}
