package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"

	"understudy.dev/understudy/dead/addr"
)

// Bounds for the symbol table of a kernel. Debian's kernels have 110,000 to 210,000
// symbols in about 2.5 MB of names.
const (
	maxSymbols    = 2 << 20
	maxNamesSize  = 48 << 20
	maxSymbolName = 512 // KSYM_NAME_LEN since 6.1, commit b8a94bfb3395; 128 before
	tokenCount    = 256
)

// symbolTable is the kernel's own compressed symbol table
// (kernel/kallsyms.c, scripts/kallsyms.c).
type symbolTable struct {
	count   int
	names   []byte // length and tokens of each symbol, one after the other
	tokens  [tokenCount][]byte
	values  addresses
	answers *answerSet // which symbols have a name, as far as that was asked
	index   func() (*symbolIndex, error)
}

// symbolIndex finds symbols by their names.
type symbolIndex struct {
	start []uint32 // where symbol i begins in names
	seed  maphash.Seed
	first map[uint64]uint32 // hash of a name in the source to the last symbol with that hash
	next  []uint32          // the symbol before it with the same hash, plus one; 0 ends the chain
}

// addresses yields the value of each symbol.
type addresses struct {
	offsets []byte // of 4 bytes each
	kind    addressKind
	base    addr.Virt
}

// addressKind is how offsets represent addresses.
type addressKind int

const (
	// absolutePercpu: positive offsets are addresses, negative ones count from
	// base - 1 (CONFIG_KALLSYMS_ABSOLUTE_PERCPU, x86-64 up to 6.14).
	absolutePercpu addressKind = iota
	// fromBase: unsigned offsets from a base (x86-64 from 6.15 on, where the
	// per-CPU section is linked relative to the image).
	fromBase
	// fromSelf: signed offsets from the address of the offset itself; there is
	// no base (observed on 7.2).
	fromSelf
	addressKinds
)

func (a addresses) at(i int) addr.Virt {
	off := binary.LittleEndian.Uint32(a.offsets[4*i:])
	signed := int64(int32(off))
	switch a.kind {
	case absolutePercpu:
		if signed >= 0 {
			return addr.Virt(signed)
		}
		return a.base - 1 - addr.Virt(signed)
	case fromBase:
		return a.base + addr.Virt(off)
	default:
		return a.base + addr.Virt(4*i) + addr.Virt(signed)
	}
}

// symbolBytes are the raw parts of a symbol table.
type symbolBytes struct {
	count      int
	names      []byte // may extend beyond the names
	tokenTable []byte // may extend beyond the table
	tokenIndex []byte
	offsets    []byte
}

// newSymbolTable decodes a symbol table. What the memo knows about the table may spare reading
// its names. How its offsets represent addresses is found out later, by resolveOffsets.
func newSymbolTable(raw symbolBytes, m *memo) (*symbolTable, error) {
	if raw.count <= 0 || raw.count > maxSymbols || len(raw.offsets) < 4*raw.count {
		return nil, fmt.Errorf("parse kallsyms: %d symbols with %d bytes of offsets", raw.count, len(raw.offsets))
	}
	t := &symbolTable{count: raw.count, names: raw.names}
	t.index = sync.OnceValues(t.read)
	t.values.offsets = raw.offsets[:4*raw.count]
	if err := t.readTokens(raw.tokenTable, raw.tokenIndex); err != nil {
		return nil, err
	}
	read := false
	// The offsets are not part of what is identified: the answers are numbers of symbols.
	count := binary.LittleEndian.AppendUint64([]byte("symbols"), uint64(t.count))
	if t.answers, read = m.about(count, t.names, bytes.Join(t.tokens[:], []byte{0})); read {
		return t, nil
	}
	_, err := t.index()
	return t, err
}

// read goes through all names and indexes them.
func (t *symbolTable) read() (*symbolIndex, error) {
	x := &symbolIndex{
		start: make([]uint32, t.count),
		next:  make([]uint32, t.count),
		seed:  maphash.MakeSeed(),
		first: make(map[uint64]uint32, t.count),
	}
	scratch := make([]byte, 0, maxSymbolName)
	pos := 0
	for i := range t.count {
		x.start[i] = uint32(pos)
		name, size, err := t.expand(pos, scratch)
		if err != nil {
			return nil, fmt.Errorf("parse kallsyms: symbol %d: %w", i, err)
		}
		pos += size
		h := maphash.Bytes(x.seed, inSource(name))
		if prev, ok := x.first[h]; ok {
			x.next[i] = prev + 1
		}
		x.first[h] = uint32(i)
	}
	return x, nil
}

// readTokens cuts the token table into its 256 strings.
func (t *symbolTable) readTokens(table, index []byte) error {
	if len(index) < 2*tokenCount {
		return fmt.Errorf("parse kallsyms: token index of %d bytes", len(index))
	}
	for i := range t.tokens {
		off := int(binary.LittleEndian.Uint16(index[2*i:]))
		if off > len(table) {
			return fmt.Errorf("parse kallsyms: token %d lies at %d of %d", i, off, len(table))
		}
		end := bytes.IndexByte(table[off:], 0)
		if end < 0 || end > maxSymbolName {
			return fmt.Errorf("parse kallsyms: token %d has no end", i)
		}
		t.tokens[i] = table[off : off+end]
	}
	return nil
}

var errSymbolCut = errors.New("name is cut off")

// expand decodes the name at pos into scratch, without its leading type letter.
// size is the length of its compressed form.
func (t *symbolTable) expand(pos int, scratch []byte) (name []byte, size int, err error) {
	rest := t.names[min(pos, len(t.names)):]
	if len(rest) < 1 {
		return nil, 0, errSymbolCut
	}
	length, head := int(rest[0]), 1
	if length&0x80 != 0 { // two bytes, since 6.1 (commit 73bbb94466fd)
		if len(rest) < 2 {
			return nil, 0, errSymbolCut
		}
		length, head = length&0x7f|int(rest[1])<<7, 2
	}
	if length == 0 || head+length > len(rest) {
		return nil, 0, errSymbolCut
	}
	name = scratch[:0]
	for _, token := range rest[head : head+length] {
		name = append(name, t.tokens[token]...)
		if len(name) > maxSymbolName {
			return nil, 0, errors.New("name is too long")
		}
	}
	if len(name) == 0 {
		return nil, 0, errors.New("name is empty")
	}
	return name[1:], head + length, nil
}

// inSource returns a symbol's name without the suffix that clang's ThinLTO adds to the name of a
// static symbol that it makes global (kernel/kallsyms.c, cleanup_symbol_name).
func inSource(name []byte) []byte {
	name, _, _ = bytes.Cut(name, []byte(".llvm."))
	return name
}

// lookup returns the addresses of all symbols that have a name in the source.
func (t *symbolTable) lookup(name string) []addr.Virt {
	numbers, err := t.answers.ask(name, func() ([]uint64, error) { return t.search(name) })
	if err != nil {
		return nil // memory has changed since its table was read
	}
	var found []addr.Virt
	for _, i := range numbers {
		if i < uint64(t.count) {
			found = append(found, t.values.at(int(i)))
		}
	}
	return found
}

// search returns the numbers of all symbols that have a name in the source.
func (t *symbolTable) search(name string) ([]uint64, error) {
	x, err := t.index()
	if err != nil {
		return nil, err
	}
	found := []uint64{}
	scratch := make([]byte, 0, maxSymbolName)
	i, ok := x.first[maphash.String(x.seed, name)]
	for ok {
		got, _, err := t.expand(int(x.start[i]), scratch)
		if err == nil && string(inSource(got)) == name {
			found = append(found, uint64(i))
		}
		ok = x.next[i] != 0
		i = x.next[i] - 1
	}
	return found, nil
}

// resolveOffsets finds out how offsets represent addresses: the one way that agrees with all
// the symbols in the note.
func (t *symbolTable) resolveOffsets(relativeBase, offsetsAt addr.Virt, known map[string]addr.Virt) error {
	var fits []addresses
	for kind := range addressKinds {
		t.values.kind, t.values.base = kind, relativeBase
		if kind == fromSelf {
			t.values.base = offsetsAt
		} else if relativeBase == 0 {
			continue
		}
		if t.agrees(known) {
			fits = append(fits, t.values)
		}
	}
	if len(fits) != 1 {
		return fmt.Errorf("parse kallsyms: %d ways to read the offsets agree with vmcoreinfo", len(fits))
	}
	t.values = fits[0]
	return nil
}

// agrees compares symbols with what is known of them. A table has all variables, or none
// of them.
func (t *symbolTable) agrees(known map[string]addr.Virt) bool {
	variables, absent := 0, 0
	for name, want := range known {
		got := t.lookup(name)
		if name != firstFunction {
			variables++
		}
		if len(got) == 0 && name != firstFunction {
			absent++
			continue
		}
		if len(got) != 1 || got[0] != want {
			return false
		}
	}
	_, has := known[firstFunction]
	return has && (absent == 0 || absent == variables)
}

// firstFunction is a symbol that every table has: where the code of the image begins.
const firstFunction = "_stext"
