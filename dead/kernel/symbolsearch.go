package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"

	"understudy.dev/understudy/dead/addr"
)

// Before 6.0 (commit 5fd8fea935a1) the note does not say where the symbol table
// is. It is found by its form: first the table of tokens, in which the digits
// stand for themselves; then, going backward, its other parts, in the order in
// which scripts/kallsyms.c of 4.20 to 6.1 writes them: offsets, relative_base,
// num_syms, names, markers, token_table, token_index, each aligned to 8 bytes.

// maxImage bounds the search: the image of a kernel lies within KERNEL_IMAGE_SIZE,
// 1 GiB, but the symbol table is in the first part of it.
const maxImage = 256 << 20

var tokenDigits = []byte("0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")

var errNoSymbols = fmt.Errorf("search symbol table: %w: a kernel built without CONFIG_KALLSYMS has none, and is not understood", ErrNotFound)

// searchSymbols finds the parts of the symbol table in the kernel image, which
// begins at start.
func (k *Kernel) searchSymbols(start addr.Virt) (symbolTables, error) {
	for at, span := range k.mapped(start, maxImage) {
		for pos := 0; ; {
			i := bytes.Index(span[pos:], tokenDigits)
			if i < 0 {
				break
			}
			if p, ok := partsAround(span, pos+i); ok {
				return p.moved(at), nil
			}
			pos += i + 1
		}
	}
	return symbolTables{}, errNoSymbols
}

// mapped yields what is mapped from an address on, in stretches that are as long
// as they are contiguous in physical memory.
func (k *Kernel) mapped(start addr.Virt, n int) iter.Seq2[addr.Virt, []byte] {
	return func(yield func(addr.Virt, []byte) bool) {
		var first addr.Virt
		var phys addr.Phys
		length := uint64(0)
		flush := func() bool {
			b, err := k.mem.View(phys, int(length))
			length = 0
			return err != nil || len(b) == 0 || yield(first, b)
		}
		for va := start &^ (addr.PageSize - 1); va >= start&^(addr.PageSize-1) && va < start+addr.Virt(n); {
			pa, room, err := k.paging.translate(va)
			if err != nil {
				pa, room = 0, addr.PageSize
			}
			if err != nil || (length > 0 && pa != phys+addr.Phys(length)) {
				if !flush() {
					return
				}
			}
			if err == nil {
				if length == 0 {
					first, phys = va, pa
				}
				length += room
			}
			va += addr.Virt(room)
		}
		flush()
	}
}

// moved returns the tables moved by a distance: this turns offsets into addresses.
func (p symbolTables) moved(by addr.Virt) symbolTables {
	for _, a := range p.all() {
		*a += by
	}
	return p
}

// partsAround assumes that the digits at an offset are those of a token table, and
// looks for the other parts of a symbol table around it. The results are offsets
// into b.
func partsAround(b []byte, digits int) (symbolTables, bool) {
	table, index, ok := tokensAround(b, digits)
	if !ok {
		return symbolTables{}, false
	}
	names, count, ok := namesBefore(b, table)
	if !ok {
		return symbolTables{}, false
	}
	base := names - 16
	offsets := base - (4*count+7)&^7
	if offsets < 0 {
		return symbolTables{}, false
	}
	return symbolTables{
		count: addr.Virt(names - 8), names: addr.Virt(names),
		tokenTable: addr.Virt(table), tokenIndex: addr.Virt(index),
		offsets: addr.Virt(offsets), relativeBase: addr.Virt(base),
	}, true
}

// tokensAround finds the start of the token table from that of token '0', and
// the index after it, which has the offset of each token.
func tokensAround(b []byte, digits int) (table, index int, ok bool) {
	at := digits
	for range int('0') - 1 { // back to the start of token 1
		if at = bytes.LastIndexByte(b[:max(0, at-1)], 0) + 1; at <= 1 {
			return 0, 0, false
		}
	}
	for start := (at - 1) &^ 7; start >= 0 && start > at-maxSymbolName; start -= 8 {
		if index, ok = indexBehind(b, start); ok {
			return start, index, true
		}
	}
	return 0, 0, false
}

// indexBehind checks a token table at start against the index that must follow it.
func indexBehind(b []byte, start int) (index int, ok bool) {
	var starts [tokenCount]int
	at := start
	for i := range starts {
		starts[i] = at - start
		end := bytes.IndexByte(b[at:], 0)
		if end < 0 || end > maxSymbolName {
			return 0, false
		}
		at += end + 1
	}
	index = (at + 7) &^ 7
	if index+2*tokenCount > len(b) {
		return 0, false
	}
	for i, off := range starts {
		if int(binary.LittleEndian.Uint16(b[index+2*i:])) != off {
			return 0, false
		}
	}
	return index, true
}

// namesBefore finds the names that lie before a token table, and how many there
// are. It tries every address that has a plausible count before it.
func namesBefore(b []byte, table int) (names, count int, ok bool) {
	const fewest = 1000 // symbols
	lowest := max(16, table-maxNamesSize)
	budget := 16 * maxSymbols // names looked at in all, so that made-up counts do not take hours
	for names = table&^7 - 2*fewest&^7; names >= lowest; names -= 8 {
		count = int(binary.LittleEndian.Uint32(b[names-8:]))
		padding := binary.LittleEndian.Uint32(b[names-4:])
		if padding != 0 || count < fewest || count > maxSymbols || 2*count >= table-names {
			continue
		}
		if budget -= count; budget < 0 {
			break
		}
		if namesFit(b[:table], names, count) {
			return names, count, true
		}
	}
	return 0, 0, false
}

// namesFit checks that count names from an offset on are followed by markers,
// the offset of every 256th name, and that these are followed by the end of b. In
// between may be the order of the names, 3 bytes for each (6.2, commit 60443c88f3a8,
// and stable 6.1).
func namesFit(b []byte, names, count int) bool {
	at := names
	starts := make([]int, 0, count/256+1)
	for i := range count {
		if i%256 == 0 {
			starts = append(starts, at-names)
		}
		if at+1 >= len(b) {
			return false
		}
		length := int(b[at])
		if length&0x80 != 0 {
			length = (length&0x7f | int(b[at+1])<<7) + 1
		}
		if length == 0 {
			return false
		}
		at += length + 1
	}
	align := func(n int) int { return (n + 7) &^ 7 }
	markers := align(at)
	end := align(markers + 4*len(starts))
	if end != len(b) && align(end+3*count) != len(b) {
		return false
	}
	for i, start := range starts {
		if int(binary.LittleEndian.Uint32(b[markers+4*i:])) != start {
			return false
		}
	}
	return true
}
