package metal

import (
	"encoding/binary"
	"fmt"
)

// The machine's boot CPU must never get an INIT, which would reset the machine. So an NMI takes it out
// of the dead kernel and into a cell, where it stays for as long as the machine is on. The cell is a
// page of the understudy's low memory, with page tables beside it, so that all of the dead kernel's
// memory may be used for something else.

// Offsets into the cell's page.
const (
	cellGDT    = 0x100
	cellGDTR   = 0x140
	cellIDTR   = 0x150
	cellParked = 0x180 // 32 bits: parkedBoot once the CPU is there
	cellIDT    = 0x800
)

const parkedBoot = 0x4b524150 // "PARK"

// nmiHandler is the address of what a kernel runs at an NMI.
type nmiHandler struct{ virtual, physical uint64 }

// cell is the cell of a boot CPU: the page and the page tables at lowCell, and the code that replaces
// the dead kernel's NMI handler and leads there.
type cell struct {
	at   uint32 // address of the page
	page []byte
	nmi  []byte
	root paging // page tables: the first is the root for five levels, the second for four
}

// newCell makes the cell for the boot CPU of a kernel with that NMI handler, in the page at that
// address.
func newCell(at uint32, h nmiHandler) (*cell, error) {
	// The kernel's text is in the upper half of the addresses that four levels reach, and its pages
	// are at least as large as ours (Documentation/arch/x86/x86_64/mm.rst).
	if h.virtual>>47 != 1<<17-1 || (h.virtual^h.physical)%pageBytes != 0 {
		return nil, fmt.Errorf("the kernel's NMI handler is at virtual address %#x and physical address %#x: not kernel text, or their offsets in the page differ", h.virtual, h.physical)
	}
	c := &cell{at: at, page: cellPage(at), root: paging{at: uint64(at) + pageBytes}}
	five, four := c.root.table(), c.root.table()
	for _, index := range []uint64{0, 511} {
		c.root.set(five, index, (c.root.at+four)|pagePresent|pageWrite)
	}
	c.nmi = toCell(at, uint32(c.root.at+five), uint32(c.root.at+four))
	c.root.page(four, uint64(at), uint64(at))
	for _, end := range []uint64{0, uint64(len(c.nmi)) - 1} { // the code may reach into the next page
		c.root.page(four, h.virtual+end, h.physical+end)
	}
	return c, nil
}

// toCell is the code that replaces a kernel's NMI handler: it switches to the page tables of a cell,
// with as many levels as the kernel's, and jumps to the cell. The kernel may have indirect branch
// tracking on (endbr64), and LASS, which keeps it from running code in the lower half of the addresses
// (Linux 7.1 and later). As there is no IRET, no other NMI is taken.
func toCell(at, five, four uint32) []byte {
	c := &code{}
	c.put(0xf3, 0x0f, 0x1e, 0xfa) // endbr64
	c.put(0xfa)                   // cli
	c.put(0x0f, 0x20, 0xe0)       // mov %cr4, %rax
	c.put(0xb9)                   // mov $four, %ecx
	c.put32(four)
	c.put(0x48, 0x0f, 0xba, 0xf0, 27) // btr $LASS, %rax
	c.put(0x0f, 0x22, 0xe0)           // mov %rax, %cr4
	c.put(0x0f, 0xba, 0xe0, 12)       // bt $LA57, %eax
	c.put(0x73, 0x05)                 // jnc over the next instruction
	c.put(0xb9)                       // mov $five, %ecx
	c.put32(five)
	c.put(0x0f, 0x22, 0xd9) // mov %rcx, %cr3
	c.put(0xb8)             // mov $at, %eax
	c.put32(at)
	c.put(0xff, 0xe0) // jmp *%rax
	return c.b
}

// cellPage is the cell's page: the CPU loads its descriptor tables and its stack from it, reports that
// it is here, and halts. A machine check, or another exception, leads it back to the HLT.
func cellPage(at uint32) []byte {
	c := &code{at: at}
	c.put(0xf3, 0x0f, 0x1e, 0xfa) // endbr64
	c.put(0x0f, 0x01, 0x14, 0x25) // lgdt cellGDTR
	c.put32(at + cellGDTR)
	c.put(0x0f, 0x01, 0x1c, 0x25) // lidt cellIDTR
	c.put32(at + cellIDTR)
	c.put(0xc7, 0x04, 0x25) // movl $parkedBoot, cellParked
	c.put32(at + cellParked)
	c.put32(parkedBoot)
	stay := at + uint32(len(c.b))
	c.put(0xf3, 0x0f, 0x1e, 0xfa) // endbr64
	c.put(0xbc)                   // mov $(at + pageBytes), %esp
	c.put32(at + pageBytes)
	c.put(0xf4)       // hlt
	c.put(0xeb, 0xfd) // jmp to it

	page := make([]byte, pageBytes)
	copy(page, c.b)
	binary.LittleEndian.PutUint64(page[cellGDT+selector64:], segmentLong)
	describe := func(register int, at uint32, size int) {
		binary.LittleEndian.PutUint16(page[register:], uint16(size-1))
		binary.LittleEndian.PutUint64(page[register+2:], uint64(at))
	}
	describe(cellGDTR, at+cellGDT, selector64+8)
	describe(cellIDTR, at+cellIDT, vectors*16)
	for n := range vectors { // interrupt gates (SDM volume 3, 6.14.1)
		gate := page[cellIDT+16*n:]
		binary.LittleEndian.PutUint32(gate, selector64<<16|stay&0xffff)
		binary.LittleEndian.PutUint32(gate[4:], stay&^0xffff|0x8e00)
	}
	return page
}
