package kernel

import (
	"errors"
	"fmt"
	"strings"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ram"
)

// architecture is what differs between the kernels of different processors, as far as this
// package knows.
type architecture struct {
	name string // as uname -m has it
	mark string // a number in the note that only its kernels have

	// tables returns the page tables, as far as the note describes them.
	tables func(n *note) (*paging, error)
	// direct returns where all memory is mapped in one piece.
	direct func(k *Kernel) (linear, error)
	// pages returns the address of the struct page of frame 0, which need not exist.
	pages func(k *Kernel) (addr.Virt, error)
	// arrangement returns where the bytes of a RAM file lie, by what the kernel knows of
	// its memory: as guessed, or otherwise.
	arrangement func(k *Kernel, file ram.Unarranged, guess ram.Arrangement) (ram.Arrangement, error)

	sizes   []addr.Pages // that a base page may have
	same    []string     // symbols of the note that have the same name in the symbol table
	bases   []string     // variables that tell one boot from another; missing ones do not count
	machine ram.Machine
}

var architectures = []*architecture{&amd64, &arm64}

// linear is a mapping in one piece: virt.Start is mapped to phys.
type linear struct {
	virt addr.VirtRange
	phys addr.Phys
}

// translate is only for addresses within the mapping.
func (l *linear) translate(va addr.Virt) addr.Phys { return l.phys + addr.Phys(va-l.virt.Start) }

// architectureOf returns what a kernel runs on, according to its note, and how large its base pages are.
func architectureOf(n *note) (*architecture, addr.Pages, error) {
	var names []string
	for _, a := range architectures {
		if _, err := n.number(a.mark); err == nil {
			unit, err := a.pageSize(n)
			return a, unit, err
		} else if !errors.Is(err, ErrNotFound) {
			return nil, 0, err
		}
		names = append(names, a.name)
	}
	return nil, 0, fmt.Errorf("parse vmcoreinfo: not a kernel for any of %s", strings.Join(names, ", "))
}

// pageSize returns the size of base pages that a kernel reports.
func (a *architecture) pageSize(n *note) (addr.Pages, error) {
	told, ok := n.values["PAGESIZE"]
	if !ok {
		return addr.Pages4K, nil
	}
	for _, size := range a.sizes {
		if told == fmt.Sprint(size.Size()) {
			return size, nil
		}
	}
	return 0, fmt.Errorf("parse vmcoreinfo: a kernel for %s with pages of %.8s bytes: it cannot have that", a.name, told)
}

// top returns where the last piece of memory ends.
func (k *Kernel) top() (top addr.Phys) {
	for _, r := range k.ranges {
		top = max(top, r.End)
	}
	return top
}
