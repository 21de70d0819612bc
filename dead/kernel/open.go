package kernel

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// startKernelMap is where the kernel image is linked: __START_KERNEL_map
// (arch/x86/include/asm/page_64_types.h). Within the image, physical is virtual
// minus this plus phys_base.
const startKernelMap addr.Virt = 0xffff_ffff_8000_0000

// open builds a Kernel from its note and verifies it. pa is where the note is in
// memory, 0 if that is not known.
func (f *finder) open(n *note, pa addr.Phys) (*Kernel, error) {
	k := &Kernel{
		mem: f.mem, ranges: f.mem.Ranges(), note: n, notePA: pa, Release: n.values["OSRELEASE"],
		memo: &memo{path: f.keep}, modules: make(map[digest]*Types),
	}
	steps := []struct {
		what string
		do   func() error
	}{
		{"page tables", k.openPaging},
		{"release", k.checkRelease},
		{"memo", k.openMemo},
		{"symbols", k.loadSymbols},
		{"note", k.findNote},
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
	_, _ = fmt.Sscanf(k.note.values["KERNELOFFSET"], "%x", &k.Offset) // it is not there without KASLR
	// The page tables must agree with the image's linear mapping.
	if pa, _, err := k.paging.walk(root); err != nil || pa != k.paging.root {
		return fmt.Errorf("swapper_pg_dir maps itself to %v (%w), not %v", pa, err, k.paging.root)
	}
	return nil
}

// utsLen is the size of each of the six strings in struct new_utsname: sysname,
// nodename, release, version, machine, domainname (include/uapi/linux/utsname.h).
const utsLen = 65

// utsname reads the kernel's own struct new_utsname.
func (k *Kernel) utsname() ([]byte, error) {
	uts, err := k.note.symbol("init_uts_ns")
	if err != nil {
		return nil, err
	}
	name, err := k.note.offset("uts_namespace.name")
	if errors.Is(err, ErrNotFound) {
		// It stood behind a reference count of 4 bytes, and the note did not
		// say so, before 5.11 (commits 9a56493f6942 and ca4a9241cc5e).
		name, err = 4, nil
	}
	if err != nil {
		return nil, err
	}
	return k.Bytes(uts+addr.Virt(name), 6*utsLen)
}

// checkRelease compares the release in the note with the one that the kernel
// itself keeps.
func (k *Kernel) checkRelease() error {
	uts, err := k.utsname()
	if err != nil {
		return err
	}
	if b := uts[2*utsLen : 3*utsLen]; !sameString(b, k.Release) {
		return fmt.Errorf("the kernel's own is %.64q", b)
	}
	return nil
}

// findNote finds the note in memory where only its text is known, by the kernel's
// own pointer to it (kernel/crash_core.c, later kernel/vmcore_info.c), and checks
// that both are the same.
func (k *Kernel) findNote() error {
	if k.notePA != 0 {
		return nil
	}
	at, err := k.Symbol("vmcoreinfo_note")
	if err != nil {
		return err
	}
	if at, err = k.Pointer(at); err != nil {
		return err
	}
	pa, err := k.Physical(at)
	if err != nil {
		return err
	}
	n, err := readNote(k.mem, pa)
	if err != nil {
		return err
	}
	if n.text != k.note.text {
		return errors.New("the one in memory differs")
	}
	k.notePA = pa
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
