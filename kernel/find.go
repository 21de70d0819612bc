package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"sync"

	"understudy/addr"
	"understudy/ram"
)

// startKernelMap is where the kernel image is linked: __START_KERNEL_map
// (arch/x86/include/asm/page_64_types.h). Within the image, physical is virtual
// minus this plus phys_base.
const startKernelMap addr.Virt = 0xffff_ffff_8000_0000

// maxCandidates bounds how many notes are looked into. One is right; a rebooted
// or a nested machine leaves a few more.
const maxCandidates = 64

// Find finds the kernel in a machine's memory: by its VMCOREINFO note, verified
// against what the note says. Several verified kernels are an error.
func Find(mem ram.Memory) (*Kernel, error) {
	places := scan(mem, notesOnPages)
	if len(places) == 0 {
		places = scan(mem, notesAnywhere)
	}
	var found []*Kernel
	var errs []error
	for _, pa := range places[:min(len(places), maxCandidates)] {
		k, err := open(mem, pa)
		if err != nil {
			errs = append(errs, fmt.Errorf("note at %v: %w", pa, err))
			continue
		}
		found = append(found, k)
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, fmt.Errorf("find kernel: %w", errors.Join(append([]error{ErrNoKernel}, errs...)...))
	default:
		return newest(found)
	}
}

// scanChunk is what one worker looks through at a time, in bytes.
const scanChunk = 16 << 20

// A scanner yields the offsets of notes in a chunk of memory.
type scanner func(chunk []byte) iter.Seq[int]

// scan looks through all memory in parallel, and returns where the notes are, in
// ascending order.
func scan(mem ram.Memory, find scanner) []addr.Phys {
	var (
		mu     sync.Mutex
		places []addr.Phys
		wg     sync.WaitGroup
		work   = make(chan addr.PhysRange)
	)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for r := range work {
				chunk, err := mem.View(r.Start, int(r.Len()))
				if err != nil {
					continue // absent: nothing to find there
				}
				for off := range find(chunk) {
					mu.Lock()
					places = append(places, r.Start+addr.Phys(off))
					mu.Unlock()
				}
			}
		})
	}
	for r := range chunks(mem) {
		work <- r
	}
	close(work)
	wg.Wait()
	slices.Sort(places)
	return slices.Compact(places)
}

// chunks cuts the memory that was ever touched into pieces. They overlap by a
// page, so that no note is cut.
func chunks(mem ram.Memory) iter.Seq[addr.PhysRange] {
	return func(yield func(addr.PhysRange) bool) {
		for _, r := range mem.Ranges() {
			for part := range touched(mem, r) {
				// To whole pages: a file's holes may end elsewhere.
				part.Start = max(r.Start, part.Start&^(addr.PageSize-1))
				part.End = min(r.End, (part.End+addr.PageSize-1)&^(addr.PageSize-1))
				for start := part.Start; start < part.End; start += scanChunk {
					end := min(start+scanChunk+addr.PageSize, part.End)
					if !yield(addr.PhysRange{Start: start, End: end}) {
						return
					}
				}
			}
		}
	}
}

func touched(mem ram.Memory, r addr.PhysRange) iter.Seq[addr.PhysRange] {
	if s, ok := mem.(ram.Sparse); ok {
		return s.Touched(r)
	}
	return func(yield func(addr.PhysRange) bool) { yield(r) }
}

// notesOnPages looks only at the start of each page: where the kernel puts its
// note. That touches one cache line in 64.
func notesOnPages(chunk []byte) iter.Seq[int] {
	return func(yield func(int) bool) {
		for off := 0; off < len(chunk); off += addr.PageSize {
			if _, ok := noteTextSize(chunk[off:]); ok && !yield(off) {
				return
			}
		}
	}
}

// notesAnywhere looks at every byte.
func notesAnywhere(chunk []byte) iter.Seq[int] {
	pattern := []byte(noteName + "\x00OSRELEASE=")
	return func(yield func(int) bool) {
		for pos := 0; ; {
			i := bytes.Index(chunk[pos:], pattern)
			if i < 0 {
				return
			}
			pos += i
			if pos >= noteHeadSize {
				if _, ok := noteTextSize(chunk[pos-noteHeadSize:]); ok && !yield(pos-noteHeadSize) {
					return
				}
			}
			pos += len(pattern)
		}
	}
}

// readNote reads and parses the note at pa.
func readNote(mem ram.Memory, pa addr.Phys) (*note, error) {
	head, err := mem.View(pa, noteTextOffset)
	if err != nil {
		return nil, err
	}
	size, ok := noteTextSize(head)
	if !ok {
		return nil, errors.New("it is not a note")
	}
	text, err := mem.View(pa+noteTextOffset, size)
	if err != nil {
		return nil, err
	}
	return parseNote(text)
}

// open builds a Kernel from the note at pa and verifies it.
func open(mem ram.Memory, pa addr.Phys) (*Kernel, error) {
	n, err := readNote(mem, pa)
	if err != nil {
		return nil, err
	}
	k := &Kernel{mem: mem, ranges: mem.Ranges(), note: n, notePA: pa, Release: n.values["OSRELEASE"]}
	steps := []struct {
		what string
		do   func() error
	}{
		{"page tables", k.openPaging},
		{"release", k.checkRelease},
		{"symbols", k.loadSymbols},
		{"memory layout", k.openMemory},
		{"types", k.loadTypes},
		{"struct page", k.openPages},
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			return nil, fmt.Errorf("open kernel %.64q: %s: %w", k.Release, step.what, err)
		}
	}
	return k, nil
}

// openPaging finds the top of the kernel's page tables.
func (k *Kernel) openPaging() error {
	root, err := k.note.symbol("swapper_pg_dir")
	if err != nil {
		return err
	}
	physBase, err := k.note.number("phys_base")
	if err != nil {
		return err
	}
	if root < startKernelMap {
		return fmt.Errorf("swapper_pg_dir at %v is outside of the image", root)
	}
	k.paging = &paging{mem: k.mem, root: addr.Phys(int64(root-startKernelMap) + physBase), levels: 4}
	// NUMBER(pgtable_l5_enabled) is there since 4.20, NUMBER(sme_mask) since
	// 5.0 (arch/x86/kernel/crash_core_64.c, machine_kexec_64.c).
	if l5, err := k.note.number("pgtable_l5_enabled"); err == nil && l5 == 1 {
		k.paging.levels = 5
	}
	if sme, err := k.note.number("sme_mask"); err == nil {
		k.paging.sme = uint64(sme)
	}
	fmt.Sscanf(k.note.values["KERNELOFFSET"], "%x", &k.Offset)
	// The page tables must agree with the image's linear mapping.
	if pa, _, err := k.paging.walk(root); err != nil || pa != k.paging.root {
		return fmt.Errorf("swapper_pg_dir maps itself to %v (%w), not %v", pa, err, k.paging.root)
	}
	return nil
}

// checkRelease compares the release in the note with the one that the kernel
// itself keeps.
func (k *Kernel) checkRelease() error {
	uts, err := k.note.symbol("init_uts_ns")
	if err != nil {
		return err
	}
	name, err := k.note.offset("uts_namespace.name")
	if errors.Is(err, ErrNotFound) {
		// It stood behind a reference count of 4 bytes, and the note did not
		// say so, before 5.11 (commits 9a56493f6942 and ca4a9241cc5e).
		name, err = 4, nil
	}
	if err != nil {
		return err
	}
	// struct new_utsname: sysname, nodename, release of 65 bytes each
	// (include/uapi/linux/utsname.h).
	const utsLen = 65
	b, err := k.Bytes(uts+addr.Virt(name)+2*utsLen, utsLen)
	if err != nil {
		return err
	}
	if !sameString(b, k.Release) {
		return fmt.Errorf("the kernel's own is %.64q", b)
	}
	return nil
}

// openMemory finds the direct map and the map of page structures. Without
// CONFIG_RANDOMIZE_MEMORY they would be constants; all kernels of interest have
// it.
func (k *Kernel) openMemory() error {
	direct, err := k.symbolU64("page_offset_base")
	if err != nil {
		return err
	}
	memMap, err := k.symbolU64("vmemmap_base")
	if err != nil {
		return err
	}
	k.directMap, k.memMap = addr.Virt(direct), addr.Virt(memMap)
	if !k.directMap.IsKernel() || !k.memMap.IsKernel() {
		return fmt.Errorf("direct map at %v, struct pages at %v", k.directMap, k.memMap)
	}
	if k.Banner, err = k.readBanner(); err != nil {
		return err
	}
	// The direct map is linear: look where the note is in it, and trust the
	// rest.
	at := k.directMap + addr.Virt(k.notePA)
	if pa, _, err := k.paging.walk(at); err != nil || pa != k.notePA {
		return fmt.Errorf("the direct map has %v at %v (%w)", pa, at, err)
	}
	var top addr.Phys
	for _, r := range k.ranges {
		top = max(top, r.End)
	}
	k.paging.direct = addr.VirtRange{Start: k.directMap, End: k.directMap + addr.Virt(top)}
	return nil
}

// openPages learns the size of struct page.
func (k *Kernel) openPages() error {
	l := k.types.Layout("page")
	if err := l.Err(); err != nil {
		return err
	}
	k.pageSize = l.Size
	return nil
}
