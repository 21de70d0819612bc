package kernel

import (
	"bytes"
	"encoding/binary"
	"iter"

	"understudy.dev/understudy/dead/addr"
)

// A kernel without CONFIG_KALLSYMS_ALL, such as Debian's 6.1 for arm64, has only functions in
// its symbol table. Variables that modules may use are in the tables of exported symbols
// (include/linux/export.h, struct kernel_symbol; with relative references since 4.19, commit
// 7290d5809571, and namespaces since 5.4, commit 8651ec01daed): offsets of the value, of the
// name and of its namespace, each relative to its own position, sorted by name for bsearch
// (kernel/module/main.c).
const (
	exportSize = 12
	exportName = 4
	// fewestExports is how many sorted names make a table; real tables have thousands.
	fewestExports = 256
)

// exportsIn finds the exported symbols in a stretch of a kernel's image that begins at an
// address. A name with several values is left out.
func exportsIn(at addr.Virt, b []byte) map[string]addr.Virt {
	found, twice := make(map[string]addr.Virt), make(map[string]bool)
	for pos, n := range exportTables(b) {
		for range n {
			name, _ := exportedName(b, pos)
			value := at + addr.Virt(pos) + addr.Virt(int64(int32(binary.LittleEndian.Uint32(b[pos:]))))
			if old, ok := found[string(name)]; ok && old != value {
				twice[string(name)] = true
			}
			found[string(name)] = value
			pos += exportSize
		}
	}
	for name := range twice {
		delete(found, name)
	}
	return found
}

// exportTables yields where tables are, and how many entries each has. Entries are aligned to
// 4 bytes, so that a table begins at one of three positions modulo their size; each is searched once.
func exportTables(b []byte) iter.Seq2[int, int] {
	return func(yield func(int, int) bool) {
		for phase := 0; phase < exportSize; phase += 4 {
			var last []byte
			n := 0
			for pos := phase; ; pos += exportSize {
				var name []byte
				ok := pos+exportSize <= len(b)
				if ok {
					name, ok = exportedName(b, pos)
				}
				if ok && n > 0 && bytes.Compare(last, name) < 0 {
					n, last = n+1, name
					continue
				}
				if n >= fewestExports && !yield(pos-n*exportSize, n) {
					return
				}
				if n = 0; ok {
					n, last = 1, name
				}
				if pos >= len(b) {
					break
				}
			}
		}
	}
}

// exportedName returns the name of an entry, if a symbol can have it.
func exportedName(b []byte, pos int) ([]byte, bool) {
	off := int64(int32(binary.LittleEndian.Uint32(b[pos+exportName:])))
	start := int64(pos+exportName) + off
	if start < 0 || start >= int64(len(b)) {
		return nil, false
	}
	rest := b[start:min(int64(len(b)), start+maxSymbolName)]
	for i, c := range rest {
		switch {
		case c == 0:
			return rest[:i], i > 0
		case c == '_', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', i > 0 && c >= '0' && c <= '9':
		default:
			return nil, false
		}
	}
	return nil, false
}

// image yields what is mapped of the kernel's image, which lies in physical memory as it does in the
// kernel's addresses. What else is mapped after it does not.
func (k *Kernel) image() iter.Seq2[addr.Virt, []byte] {
	return func(yield func(addr.Virt, []byte) bool) {
		start, err := k.note.symbol("_stext")
		if err != nil {
			return
		}
		for at, b := range k.mapped(start, maxImage) {
			if k.inImage(at) && !yield(at, b) {
				return
			}
		}
	}
}

// inImage reports whether an address is in the kernel's image.
func (k *Kernel) inImage(va addr.Virt) bool {
	start, err := k.note.symbol("_stext")
	if err != nil || va < start&^(addr.PageSize-1) || va-start >= maxImage && va >= start {
		return false
	}
	pa, _, err := k.paging.translate(va)
	return err == nil && pa == k.paging.root+addr.Phys(va-k.paging.rootVirt)
}
