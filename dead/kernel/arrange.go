package kernel

import (
	"errors"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ram"
)

// arranged finds the kernel in a file that does not say where its bytes lie in physical
// memory. What firmware told the kernel does.
func (f *finder) arranged(mem ram.Unarranged) (*Kernel, error) {
	var errs []error
	for n, guess := range mem.Guesses() {
		if f.mem = mem; n > 0 {
			f.mem = mem.Arranged(guess)
		}
		k, err := f.find()
		if err != nil {
			if errs = append(errs, err); errors.Is(err, errNoNotes) {
				break // pages are the same however they are arranged
			}
			continue
		}
		low, err := k.lowMemory(mem.Bytes())
		if err != nil || low == guess.Low {
			return k, nil
		}
		f.mem = mem.Arranged(ram.Arrangement{Low: low})
		return f.find()
	}
	return nil, errs[0]
}

// E820 is firmware's map of physical memory (arch/x86/include/asm/e820/types.h).
const (
	e820Entries = 128 + 3*1024 // E820_MAX_ENTRIES, with as many nodes as there can be
	e820RAM     = 1            // E820_TYPE_RAM
	fourGiB     = 1 << 32
	// lowReserved is how much firmware may keep of the memory below 4 GiB, at its end: for
	// tables of ACPI, or graphics.
	lowReserved = 512 << 20
)

var errNoMap = errors.New("firmware's map of memory does not tell how it is arranged")

// lowMemory is how much of a machine's memory, of so many bytes, lies below 4 GiB, if all
// that does not goes on there without a gap.
func (k *Kernel) lowMemory(size int64) (int64, error) {
	table, entry := k.types.Layout("e820_table"), k.types.Layout("e820_entry")
	count, entries := table.Field("nr_entries", 4), table.Field("entries")
	start, length, kind := entry.Field("addr", 8), entry.Field("size", 8), entry.Field("type", 4)
	// As firmware told it, and not cut by mem= or the like (arch/x86/kernel/e820.c).
	at, err := k.Symbol("e820_table_firmware")
	if err = errors.Join(err, table.Err(), entry.Err()); err != nil {
		return 0, err
	}
	if at, err = k.Pointer(at); err != nil {
		return 0, err
	}
	n, err := k.U32(count.In(at))
	if err != nil {
		return 0, err
	}
	if n > e820Entries {
		return 0, errNoMap
	}
	b, err := k.Bytes(entries.In(at), int(n)*entry.Size)
	if err != nil {
		return 0, err
	}
	var low, high uint64 // where each part ends
	for ; len(b) > 0; b = b[entry.Size:] {
		from, n := start.Uint(b), length.Uint(b)
		switch {
		case kind.Uint(b) != e820RAM || n > 1<<52 || from > 1<<52:
		case from+n <= fourGiB:
			low = max(low, from+n)
		default:
			high = max(high, from+n)
		}
	}
	found := uint64(size)
	if high > 0 {
		found -= high - fourGiB
	}
	if found > min(fourGiB, uint64(size)) || found%addr.PageSize != 0 || low > found || found-low > lowReserved {
		return 0, errNoMap
	}
	return int64(found), nil
}
