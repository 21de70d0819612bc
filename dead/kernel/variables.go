package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"

	"understudy.dev/understudy/dead/addr"
)

// variables are the addresses of variables of a kernel whose symbol table has only functions.
type variables struct {
	known map[string]addr.Virt // from the note, exported, or found in the image by their form

	mu      sync.Mutex
	derived map[string][]addr.Virt // found by their content, once the types are known
}

// openVariables finds variables if the symbol table has none.
func (k *Kernel) openVariables() error {
	if len(k.symbols.lookup("init_uts_ns")) > 0 {
		return nil
	}
	uts, err := k.utsname()
	if err != nil {
		return err
	}
	v := &variables{known: make(map[string]addr.Virt), derived: make(map[string][]addr.Virt)}
	var banners []addr.Virt
	var types []addr.VirtRange
	for at, b := range k.image() {
		for name, value := range exportsIn(at, b) {
			v.known[name] = value
		}
		banners = append(banners, bannersIn(at, b, k.Release, utsString(uts, 3))...)
		types = append(types, typesIn(at, b)...)
	}
	if len(types) == 0 && len(v.known) > 0 {
		return errNoTypes
	}
	if len(banners) == 0 || len(types) != 1 || len(v.known) == 0 {
		return fmt.Errorf("the symbol table has no variables (no CONFIG_KALLSYMS_ALL), and a search of the image found no unique answer: %d exported variables, %d banners, %d BTF sections", len(v.known), len(banners), len(types))
	}
	v.known["linux_banner"] = banners[0] // others are copies
	v.known["__start_BTF"], v.known["__stop_BTF"] = types[0].Start, types[0].End
	for _, name := range []string{"init_uts_ns", "swapper_pg_dir", "prb"} {
		if at, err := k.note.symbol(name); err == nil {
			v.known[name] = at
		}
	}
	k.variables = v
	return nil
}

// bannersIn finds the line that has a release and a version (init/version-timestamp.c).
func bannersIn(at addr.Virt, b []byte, release, version string) []addr.Virt {
	start, end := []byte("Linux version "+release+" ("), []byte(" "+version+"\n")
	var found []addr.Virt
	for pos := 0; ; pos++ {
		next := bytes.Index(b[pos:], start)
		if next < 0 {
			return found
		}
		pos += next
		if line, _, ok := bytes.Cut(b[pos:min(len(b), pos+maxBanner)], []byte{0}); ok && bytes.HasSuffix(line, end) {
			found = append(found, at+addr.Virt(pos))
		}
	}
}

// fewestTypes is the least number of bytes that the types of a kernel have; those of Debian's kernels have
// some million.
const fewestTypes = 64 << 10

// typesIn finds BTF in a stretch of the image (include/uapi/linux/btf.h, struct btf_header):
// the types, directly followed by the strings, of which the first is empty.
func typesIn(at addr.Virt, b []byte) []addr.VirtRange {
	magic := []byte{0x9f, 0xeb, 1, 0}
	var found []addr.VirtRange
	for pos := 0; ; pos += len(magic) {
		next := bytes.Index(b[pos:], magic)
		if next < 0 {
			return found
		}
		if pos += next; pos%4 != 0 || len(b)-pos < 24 {
			continue
		}
		u32 := func(off int) uint64 { return uint64(binary.LittleEndian.Uint32(b[pos+off:])) }
		head, typeOff, typeLen, stringOff, stringLen := u32(4), u32(8), u32(12), u32(16), u32(20)
		size := head + stringOff + stringLen
		switch {
		case head < 24 || head > 256 || typeOff != 0 || typeLen == 0 || stringOff < typeLen || stringLen < 2:
		case size < fewestTypes || size > maxBTF || size > uint64(len(b)-pos):
		case b[pos+int(head+stringOff)] != 0 || b[pos+int(size)-1] != 0:
		default:
			found = append(found, addr.VirtRange{Start: at + addr.Virt(pos), End: at + addr.Virt(pos) + addr.Virt(size)})
		}
	}
}

// lookup returns the addresses of a variable, as far as they can be found.
func (v *variables) lookup(k *Kernel, name string) []addr.Virt {
	if at, ok := v.known[name]; ok {
		return []addr.Virt{at}
	}
	find, ok := map[string]func(*Kernel) ([]addr.Virt, error){
		"super_blocks": findSuperBlocks, "btf_modules": findModuleTypes, "tk_core": findTimekeeper,
	}[name]
	if !ok {
		return nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	found, ok := v.derived[name]
	if !ok {
		found, _ = find(k) // an error counts as not found
		v.derived[name] = found
	}
	return found
}

// maxRing bounds the number of entries of a list whose head is looked for.
const maxRing = 1 << 16

// ring finds the head of the list that has the entry at an address: the entries of the list that are in
// the kernel's image.
func (k *Kernel) ring(entry addr.Virt) ([]addr.Virt, error) {
	var heads []addr.Virt
	at := entry
	for range maxRing {
		if k.inImage(at) {
			heads = append(heads, at)
		}
		next, err := k.Pointer(at)
		if err != nil {
			return nil, err
		}
		back, err := k.Pointer(next + 8)
		switch {
		case err != nil:
			return nil, err
		case back != at:
			return nil, fmt.Errorf("list entry at %v does not point back to %v", next, at)
		case next == entry:
			return heads, nil
		}
		at = next
	}
	return nil, fmt.Errorf("list at %v has no end", entry)
}

// findSuperBlocks finds the list of all file systems by the file system that is the first task's
// root (init/init_task.c, fs/fs_struct.c).
func findSuperBlocks(k *Kernel) ([]addr.Virt, error) {
	task, fs, super := k.types.Layout("task_struct"), k.types.Layout("fs_struct"), k.types.Layout("super_block")
	mount := k.types.Layout("vfsmount")
	ofTask, root, of, list := task.Field("fs", 8), fs.Field("root.mnt", 8), mount.Field("mnt_sb", 8), super.Field("s_list", 16)
	at, err := k.Symbol("init_task")
	if err = errors.Join(err, task.Err(), fs.Err(), super.Err(), mount.Err()); err != nil {
		return nil, err
	}
	for _, f := range []Field{ofTask, root, of} {
		if at, err = k.Pointer(f.In(at)); err != nil {
			return nil, err
		}
	}
	return k.ring(list.In(at))
}

// findModuleTypes finds the list of the types of modules: the list in the image whose first
// entry looks as its entries must.
func findModuleTypes(k *Kernel) ([]addr.Virt, error) {
	l, err := newModuleLayout(k.types)
	if err != nil {
		return nil, err
	}
	var heads []addr.Virt
	for at, b := range k.image() {
		for pos := 0; pos+16 <= len(b); pos += 8 {
			first, last := addr.Virt(littleEndian(b[pos:pos+8])), addr.Virt(littleEndian(b[pos+8:pos+16]))
			head := at + addr.Virt(pos)
			if !first.IsKernel() || !last.IsKernel() || first == head || first%8 != 0 {
				continue
			}
			if back, err := k.Pointer(first + 8); err != nil || back != head {
				continue
			}
			if k.hasModuleTypes(l, first-addr.Virt(l.list.Off)) {
				heads = append(heads, head)
			}
		}
	}
	return heads, nil
}

// hasModuleTypes reports whether a struct btf_module could be at an address.
func (k *Kernel) hasModuleTypes(l *moduleLayout, at addr.Virt) bool {
	entry, err := k.Bytes(at, l.entrySize)
	if err != nil {
		return false
	}
	b, err := k.Bytes(l.btf.Pointer(entry), l.size)
	if err != nil || l.name.String(b) == "" || l.used.Uint(b) < 24 {
		return false
	}
	head, err := k.Bytes(l.data.Pointer(b), 24)
	return err == nil && binary.LittleEndian.Uint16(head) == 0xeb9f
}

// findTimekeeper finds tk_core: a sequence counter, followed by a timekeeper both of whose
// clocks are read from the same source (kernel/time/timekeeping.c). It is aligned to a cache
// line; the copy that is updated first has no counter before it.
func findTimekeeper(k *Kernel) ([]addr.Virt, error) {
	l := k.types.Layout("timekeeper")
	mono, raw := l.Field("tkr_mono.clock", 8), l.Field("tkr_raw.clock", 8)
	mask, second := l.Field("tkr_mono.mask", 8), l.Field("xtime_sec", 8)
	source := k.types.Layout("clocksource")
	sourceMask := source.Field("mask", 8)
	if err := errors.Join(l.Err(), source.Err()); err != nil {
		return nil, err
	}
	const line = 64
	counter := k.types.beforeTimekeeper()
	var found []addr.Virt
	for at, b := range k.image() {
		for pos := int(-at & (line - 1)); pos+counter+l.Size <= len(b); pos += line {
			tk := b[pos+counter:][:l.Size]
			clock := mono.Pointer(tk)
			if !clock.IsKernel() || clock != raw.Pointer(tk) || second.Uint(tk) == 0 || second.Uint(tk) > 1<<34 {
				continue
			}
			if m, err := k.U64(sourceMask.In(clock)); err == nil && m == mask.Uint(tk) && m != 0 {
				found = append(found, at+addr.Virt(pos))
			}
		}
	}
	return slices.Compact(found), nil
}
