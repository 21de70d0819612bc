package kernel

import (
	"bytes"
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// open builds a Kernel from its note and verifies it. pa is where the note is in
// memory; 0 means that this is not known.
func (f *finder) open(n *note, pa addr.Phys) (*Kernel, error) {
	k := &Kernel{
		arch: n.arch, mem: f.mem, ranges: f.mem.Ranges(), note: n, notePA: pa, Release: n.values["OSRELEASE"],
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
		{"variables", k.openVariables},
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
	p, err := k.arch.tables(k.note)
	if err != nil {
		return err
	}
	p.mem = k.mem
	k.paging, k.unit = p, p.unit
	_, _ = fmt.Sscanf(k.note.values["KERNELOFFSET"], "%x", &k.Offset) // it is missing without KASLR
	// The page tables must agree with the image's linear mapping.
	if pa, _, err := p.walk(p.rootVirt); err != nil || pa != p.root {
		return fmt.Errorf("swapper_pg_dir maps itself to %v (%w), not %v", pa, err, p.root)
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
		// Before 5.11 (commits 9a56493f6942 and ca4a9241cc5e) it followed a reference
		// count of 4 bytes, and the note did not say so.
		name, err = 4, nil
	}
	if err != nil {
		return nil, err
	}
	return k.Bytes(uts+addr.Virt(name), 6*utsLen)
}

// utsString returns one of the six strings of utsname.
func utsString(uts []byte, n int) string {
	s, _, _ := bytes.Cut(uts[n*utsLen:(n+1)*utsLen], []byte{0})
	return string(s)
}

// Hostname returns the name of the machine in the first UTS namespace; empty if it has none, or if that cannot be read.
func (k *Kernel) Hostname() string {
	uts, err := k.utsname()
	if err != nil {
		return ""
	}
	if host := utsString(uts, 1); host != "(none)" { // UTS_NODENAME (init/version.c)
		return host
	}
	return ""
}

// checkRelease compares the release in the note with the one that the kernel
// itself keeps.
func (k *Kernel) checkRelease() error {
	uts, err := k.utsname()
	if err != nil {
		return err
	}
	if s := utsString(uts, 2); s != k.Release {
		return fmt.Errorf("the kernel's own is %q", s)
	}
	return nil
}

// findNote finds the note in memory if only its text is known, by the kernel's
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

// openMemory finds the direct map.
func (k *Kernel) openMemory() error {
	direct, err := k.arch.direct(k)
	if err != nil {
		return err
	}
	if k.Banner, err = k.readBanner(); err != nil {
		return err
	}
	k.bases = make(map[string]uint64)
	for _, name := range k.arch.bases {
		if v, err := k.symbolU64(name); err == nil {
			k.bases[name] = v
		}
	}
	// The direct map is linear: check where the note is in it, and trust the
	// rest.
	at := direct.virt.Start + addr.Virt(k.notePA-direct.phys)
	if pa, _, err := k.paging.walk(at); err != nil || pa != k.notePA || !direct.virt.Contains(at, 1) {
		return fmt.Errorf("the direct map has %v at %v, where the vmcoreinfo note should be (%w)", pa, at, err)
	}
	k.paging.direct = direct
	return nil
}

// openPages finds out the size of struct page, and where the struct pages are.
func (k *Kernel) openPages() error {
	l := k.types.Layout("page")
	if err := l.Err(); err != nil {
		return err
	}
	k.pageSize = l.Size
	var err error
	if k.memMap, err = k.arch.pages(k); err == nil {
		return nil
	}
	var none error
	if k.sections, none = k.memSections(); none != nil {
		return fmt.Errorf("%w, nor by sections: %w", err, none)
	}
	return nil
}
