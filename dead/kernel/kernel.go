// Package kernel finds a Linux kernel in physical memory and reads its symbols,
// its types and its virtual memory, with nothing else at hand: no vmlinux, no
// System.map, no debug symbols.
//
// # Caveats
//
// The kernel must be for x86-64, or for arm64 with base pages of any size. Memory is taken for hostile:
// every answer may be an error, none is made up. A kernel found in living memory stays valid while
// StillThere says so; what was read through it earlier may have changed.
package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ram"
)

var (
	// ErrNotFound is wrapped by lookups of something that this kernel does not have.
	ErrNotFound = errors.New("not in this kernel")
	// ErrAmbiguous is wrapped by lookups with several answers.
	ErrAmbiguous = errors.New("ambiguous")
	// ErrNoKernel is returned where no kernel was found.
	ErrNoKernel = errors.New("no kernel in this memory")
	// ErrGone is wrapped by StillThere if the kernel was replaced.
	ErrGone = errors.New("another kernel took its place")
)

// Kernel is a Linux kernel in somebody's memory. It is safe for concurrent use.
type Kernel struct {
	// Release is what uname -r says, such as "6.1.0-56-cloud-amd64".
	Release string
	// Banner is the kernel's own line of version, compiler and build.
	Banner string
	// Offset is how far KASLR moved the image, in bytes.
	Offset uint64

	arch    *architecture
	mem     ram.Memory
	ranges  []addr.PhysRange // of mem
	note    *note
	notePA  addr.Phys // of the note's ELF header
	paging  *paging
	memo    *memo
	symbols *symbolTable
	types   *Types

	variables *variables // nil if the symbol table has them

	modulesMu sync.Mutex
	modules   map[digest]*Types // by their BTF

	bases    map[string]uint64 // values of variables that tell one boot from another
	memMap   addr.Virt         // struct page of frame 0, which need not exist
	sections []section         // used instead of memMap with CONFIG_SPARSEMEM_VMEMMAP off
	unit     addr.Pages        // size of its base pages
	pageSize int               // size of struct page, in bytes
}

// Memory returns the memory the kernel was found in.
func (k *Kernel) Memory() ram.Memory { return k.mem }

// Architecture returns what the kernel runs on, as uname -m has it: "x86_64" or "aarch64".
func (k *Kernel) Architecture() string { return k.arch.name }

// PagingLevels returns how many levels the kernel's page tables have.
func (k *Kernel) PagingLevels() int { return k.paging.levels }

// Pages returns the base pages in which the kernel divides memory and files.
func (k *Kernel) Pages() addr.Pages { return k.unit }

// Types returns the types of the kernel image itself.
func (k *Kernel) Types() *Types { return k.types }

// Symbols returns the addresses of all symbols with a name; static symbols may occur
// several times.
func (k *Kernel) Symbols(name string) []addr.Virt {
	found := k.symbols.lookup(name)
	if len(found) == 0 && k.variables != nil {
		found = k.variables.lookup(k, name)
	}
	return found
}

// Symbol returns the address of the only symbol with a name. Its errors wrap only
// ErrNotFound and ErrAmbiguous.
func (k *Kernel) Symbol(name string) (addr.Virt, error) {
	switch found := k.Symbols(name); len(found) {
	case 0:
		return 0, fmt.Errorf("symbol %s: %w", name, ErrNotFound)
	case 1:
		return found[0], nil
	default:
		return 0, fmt.Errorf("symbol %s: %w: %d of them", name, ErrAmbiguous, len(found))
	}
}

// symbolU64 reads the 8-byte variable of a name.
func (k *Kernel) symbolU64(name string) (uint64, error) {
	va, err := k.Symbol(name)
	if err != nil {
		return 0, err
	}
	v, err := k.U64(va)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", name, err)
	}
	return v, nil
}

// StillThere checks, at the cost of a few reads, that this very kernel is still
// the one in memory: its note, its banner and the bases of its memory layout. It
// also forgets the translations that were cached while the kernel lived.
func (k *Kernel) StillThere() error {
	k.paging.forget()
	head, err := k.mem.View(k.notePA, noteTextOffset+len(k.note.text))
	if err != nil {
		return fmt.Errorf("check kernel: %w", err)
	}
	if _, ok := noteTextSize(head); !ok || string(head[noteTextOffset:]) != k.note.text {
		return fmt.Errorf("check kernel: %w: its vmcoreinfo differs", ErrGone)
	}
	banner, err := k.readBanner()
	if err != nil {
		return fmt.Errorf("check kernel: %w", err)
	}
	if banner != k.Banner {
		return fmt.Errorf("check kernel: %w: its banner differs", ErrGone)
	}
	for name, want := range k.bases {
		got, err := k.symbolU64(name)
		if err != nil {
			return fmt.Errorf("check kernel: %w", err)
		}
		if got != want {
			return fmt.Errorf("check kernel: %w: its %s differs", ErrGone, name)
		}
	}
	return nil
}

// maxBanner is the longest linux_banner taken for real, in bytes.
const maxBanner = 1024

func (k *Kernel) readBanner() (string, error) {
	va, err := k.Symbol("linux_banner")
	if err != nil {
		return "", err
	}
	return k.CString(va, maxBanner)
}

// PageStruct returns the address of the struct page of a frame, 0 if it has none.
func (k *Kernel) PageStruct(pfn addr.PFN) addr.Virt {
	if k.sections != nil {
		for i := range k.sections {
			if at := k.sections[i].page(k, pfn); k.sections[i].pages.Contains(at, 1) {
				return at
			}
		}
		return 0
	}
	return k.memMap + addr.Virt(uint64(pfn)*uint64(k.pageSize))
}

// PageFrame returns the frame that the struct page at va describes. It is an error
// if there is no struct page at va, or if that is for absent memory.
func (k *Kernel) PageFrame(va addr.Virt) (addr.PFN, error) {
	start, first := k.memMap, addr.PFN(0)
	if k.sections != nil {
		s, ok := k.sectionOf(va)
		if !ok {
			return 0, fmt.Errorf("%v is not a struct page", va)
		}
		start, first = s.pages.Start, s.first
	}
	if va < start {
		return 0, fmt.Errorf("%v is not a struct page", va)
	}
	off := uint64(va - start)
	if off%uint64(k.pageSize) != 0 {
		return 0, fmt.Errorf("%v is not a struct page", va)
	}
	pfn := first + addr.PFN(off/uint64(k.pageSize))
	if pfn >= 1<<40 {
		return 0, fmt.Errorf("%v is not a struct page", va)
	}
	for _, r := range k.ranges {
		if r.Contains(k.unit.Phys(pfn), uint64(k.unit.Size())) {
			return pfn, nil
		}
	}
	return 0, &ram.Fault{Addr: k.unit.Phys(pfn), Len: int(k.unit.Size())}
}

// PanicCPU returns the CPU that is panicking or has panicked. The second result
// is false if none is (kernel/panic.c, panic_cpu is PANIC_CPU_INVALID, -1).
func (k *Kernel) PanicCPU() (cpu int, panicked bool, err error) {
	va, err := k.Symbol("panic_cpu")
	if err != nil {
		return 0, false, err
	}
	v, err := k.U32(va)
	if err != nil {
		return 0, false, fmt.Errorf("read panic_cpu: %w", err)
	}
	if int32(v) < 0 {
		return 0, false, nil
	}
	return int(v), true, nil
}

// OnlineCPUs returns how many CPUs the kernel has online. One that panicked has stopped the others, which went offline then
// (kernel/cpu.c, __num_online_cpus; arch/x86/kernel/process.c, stop_this_cpu; arch/arm64/kernel/smp.c, local_cpu_stop).
func (k *Kernel) OnlineCPUs() (int, error) {
	va, err := k.Symbol("__num_online_cpus")
	if err != nil {
		return 0, err
	}
	n, err := k.U32(va)
	if err != nil {
		return 0, fmt.Errorf("read __num_online_cpus: %w", err)
	}
	return int(n), nil
}

// littleEndian decodes an unsigned number of up to 8 bytes.
func littleEndian(b []byte) uint64 {
	switch len(b) { // nearly all have one of these sizes
	case 8:
		return binary.LittleEndian.Uint64(b)
	case 4:
		return uint64(binary.LittleEndian.Uint32(b))
	case 2:
		return uint64(binary.LittleEndian.Uint16(b))
	}
	var v uint64
	for i := len(b) - 1; i >= 0; i-- {
		v = v<<8 | uint64(b[i])
	}
	return v
}
