package metal

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// walk translates an address as a CPU does with that many levels of page tables. root is the offset of
// their root.
func walk(p *paging, root uint64, levels int, va uint64) (pa uint64, ok bool) {
	table := root
	for level := levels - 1; level >= 0; level-- {
		e := binary.LittleEndian.Uint64(p.b[table+8*(va>>(12+9*level)&511):])
		switch {
		case e&pagePresent == 0:
			return 0, false
		case level == 1 && e&pageLarge != 0:
			return e&^0xfff&^pageLarge + va&(huge-1), true
		case level == 0:
			return e&^0xfff + va&0xfff, true
		}
		table = e&^0xfff - p.at
	}
	return 0, false
}

// TestToCell: the code that replaces the kernel's NMI handler turns LASS off before it jumps to the lower half, and
// tests right before the conditional jump how many levels the page tables have, since a write of CR4 leaves the flags undefined.
func TestToCell(t *testing.T) {
	want := bytes.Join([][]byte{
		{0xf3, 0x0f, 0x1e, 0xfa},
		{0xfa},
		{0x0f, 0x20, 0xe0},                // mov %cr4, %rax
		{0xb9, 0x00, 0x40, 0x02, 0x00},    // mov $four, %ecx
		{0x48, 0x0f, 0xba, 0xf0, 27},      // btr $LASS, %rax
		{0x0f, 0x22, 0xe0},                // mov %rax, %cr4
		{0x0f, 0xba, 0xe0, 12, 0x73, 0x5}, // bt $LA57, %eax; jnc
		{0xb9, 0x00, 0x30, 0x02, 0x00},    // mov $five, %ecx
		{0x0f, 0x22, 0xd9},                // mov %rcx, %cr3
		{0xb8, 0x00, 0x20, 0x02, 0x00, 0xff, 0xe0},
	}, nil)
	if got := toCell(0x22000, 0x23000, 0x24000); !bytes.Equal(got, want) {
		t.Errorf("it is\n%x, not\n%x", got, want)
	}
}

// TestCell: with four levels of page tables and with five, the cell's page, and the code that replaces
// the kernel's NMI handler, are at the same addresses as before, also where that code reaches into
// another page. Nothing else is mapped.
func TestCell(t *testing.T) {
	const at = 0x22000
	for _, h := range []nmiHandler{
		{0xffffffff81c01540, 0x1ac01540},
		{0xffffffff81c01ff0, 0x1ac01ff0},
		{0xffffffffa1fffff0, 0x11fffff0}, // into a page of another page table
		{0xffffffffbffffff0, 0x11fffff0}, // into another page directory
	} {
		c, err := newCell(at, h)
		if err != nil {
			t.Fatal(err)
		}
		if c.root.at != at+pageBytes || lowCell+pageBytes+len(c.root.b) > lowMemory {
			t.Errorf("%d bytes of page tables at %#x", len(c.root.b), c.root.at)
		}
		for root, levels := range map[uint64]int{0: 5, pageBytes: 4} {
			for va, want := range map[uint64]uint64{
				at: at, at + cellIDT: at + cellIDT, h.virtual: h.physical, h.virtual + uint64(len(c.nmi)) - 1: h.physical + uint64(len(c.nmi)) - 1,
			} {
				if pa, ok := walk(&c.root, root, levels, va); !ok || pa != want {
					t.Errorf("%#x is at %#x (%v) by %d levels, not %#x", va, pa, ok, levels, want)
				}
			}
			for _, va := range []uint64{0, at + pageBytes, h.virtual + 2*pageBytes} {
				if pa, ok := walk(&c.root, root, levels, va); ok {
					t.Errorf("%#x is mapped, to %#x", va, pa)
				}
			}
		}
		if size := binary.LittleEndian.Uint16(c.page[cellIDTR:]); size+1 != 16*vectors || cellIDT+16*vectors > pageBytes {
			t.Errorf("%d bytes of gates", size+1)
		}
		for n := range vectors {
			low, high := binary.LittleEndian.Uint32(c.page[cellIDT+16*n:]), binary.LittleEndian.Uint32(c.page[cellIDT+16*n+4:])
			target := low&0xffff | high&^0xffff
			if low>>16 != selector64 || high&0xffff != 0x8e00 || string(c.page[target-at:][:4]) != "\xf3\x0f\x1e\xfa" || c.page[target-at+9] != 0xf4 {
				t.Fatalf("vector %d leads to %#x by %#x", n, target, high)
			}
		}
	}
	for _, h := range []nmiHandler{{0x1ac01540, 0x1ac01540}, {0xffffffff81c01540, 0x1ac01550}} {
		if _, err := newCell(at, h); err == nil {
			t.Errorf("%#x was taken", h.virtual)
		}
	}
}
