package kernel

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// symbolTables says where the parts of the symbol table are.
type symbolTables struct {
	count, names, tokenTable, tokenIndex, offsets addr.Virt
	relativeBase                                  addr.Virt // 0 if there is none
}

// all returns the addresses, in a fixed order.
func (p *symbolTables) all() []*addr.Virt {
	return []*addr.Virt{&p.count, &p.names, &p.tokenTable, &p.tokenIndex, &p.offsets, &p.relativeBase}
}

// loadSymbols reads the symbol table. The note says where its parts are since 6.0
// (commit 5fd8fea935a1); if it does not, they are searched for.
func (k *Kernel) loadSymbols() error {
	tables, err := k.symbolTablesInNote()
	if !errors.Is(err, ErrNotFound) {
		if err != nil {
			return err
		}
		return k.symbolsAt(tables)
	}
	start, err := k.note.symbol("_stext")
	if err != nil {
		return err
	}
	// They are likely to be where they were in another boot.
	if tables, ok := k.memo.tablesFrom(start); ok && k.symbolsAt(tables) == nil {
		return nil
	}
	if tables, err = k.searchSymbols(start); err != nil {
		return err
	}
	k.memo.keepTables(tables, start)
	return k.symbolsAt(tables)
}

// tablesFrom returns the tables that were kept, for an image that begins at start.
func (m *memo) tablesFrom(start addr.Virt) (p symbolTables, ok bool) {
	all := p.all()
	if len(m.known.Tables) != len(all) {
		return p, false
	}
	for i, a := range all {
		*a = addr.Virt(m.known.Tables[i])
	}
	return p.moved(start), true
}

func (m *memo) keepTables(p symbolTables, start addr.Virt) {
	p = p.moved(-start)
	m.known.Tables = nil
	for _, a := range p.all() {
		m.known.Tables = append(m.known.Tables, uint64(*a))
	}
}

// symbolsAt reads the symbol table whose parts are at these addresses.
func (k *Kernel) symbolsAt(tables symbolTables) error {
	raw, err := k.readSymbolParts(tables)
	if err != nil {
		return err
	}
	symbols, err := newSymbolTable(raw, k.memo)
	if err != nil {
		return err
	}
	var base addr.Virt
	if tables.relativeBase != 0 {
		v, err := k.U64(tables.relativeBase)
		if err != nil {
			return err
		}
		base = addr.Virt(v)
	}
	if err := symbols.resolveOffsets(base, tables.offsets, k.knownSymbols()); err != nil {
		return err
	}
	k.symbols = symbols
	return nil
}

func (k *Kernel) symbolTablesInNote() (symbolTables, error) {
	var p symbolTables
	for _, part := range []struct {
		name string
		into *addr.Virt
	}{
		{"kallsyms_num_syms", &p.count},
		{"kallsyms_names", &p.names},
		{"kallsyms_token_table", &p.tokenTable},
		{"kallsyms_token_index", &p.tokenIndex},
		{"kallsyms_offsets", &p.offsets},
	} {
		va, err := k.note.symbol(part.name)
		if err != nil {
			return p, err
		}
		*part.into = va
	}
	// It is missing where offsets are relative to themselves (7.2).
	if va, err := k.note.symbol("kallsyms_relative_base"); err == nil {
		p.relativeBase = va
	}
	return p, nil
}

// readSymbolParts reads the parts of the symbol table.
func (k *Kernel) readSymbolParts(p symbolTables) (symbolBytes, error) {
	var raw symbolBytes
	count, err := k.U32(p.count)
	if err != nil {
		return raw, fmt.Errorf("read number of symbols: %w", err)
	}
	if count == 0 || count > maxSymbols {
		return raw, fmt.Errorf("%d symbols", count)
	}
	raw.count = int(count)
	// In every layout the names come before the tokens, and little else lies
	// in between (scripts/kallsyms.c, write_src).
	if p.tokenTable <= p.names || p.tokenTable-p.names > maxNamesSize {
		return raw, fmt.Errorf("names at %v, tokens at %v", p.names, p.tokenTable)
	}
	for _, part := range []struct {
		at   addr.Virt
		n    int
		into *[]byte
	}{
		{p.names, int(p.tokenTable - p.names), &raw.names},
		{p.tokenTable, 16 << 10, &raw.tokenTable}, // real ones have 1 KiB
		{p.tokenIndex, 2 * tokenCount, &raw.tokenIndex},
		{p.offsets, 4 * raw.count, &raw.offsets},
	} {
		if *part.into, err = k.Bytes(part.at, part.n); err != nil {
			return raw, fmt.Errorf("read symbol table: %w", err)
		}
	}
	return raw, nil
}

// knownSymbols returns the symbols that the note has under the same name as the
// symbol table. Other SYMBOL lines are values of pointers or members of
// arrays (kernel/crash_core.c, VMCOREINFO_SYMBOL_ARRAY, node_online_map).
func (k *Kernel) knownSymbols() map[string]addr.Virt {
	known := make(map[string]addr.Virt)
	for _, name := range k.arch.same {
		if va, err := k.note.symbol(name); err == nil {
			known[name] = va
		}
	}
	return known
}
