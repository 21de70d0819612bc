package kernel

import (
	"errors"
	"fmt"
	"strings"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ram"
)

// architecture is what differs between the kernels of one processor and another, as far as
// it is known here.
type architecture struct {
	name string // as uname -m has it
	mark string // the number in the note that only its kernels have

	// tables says of the page tables what the note tells.
	tables func(n *note) (*paging, error)
	// direct says where all memory is mapped in one piece.
	direct func(k *Kernel) (linear, error)
	// pages is the address of the struct page of frame 0, which need not be one itself.
	pages func(k *Kernel) (addr.Virt, error)
	// arrangement is where the bytes of a RAM file lie, by what the kernel knows of
	// its memory, if they lie as guessed or otherwise.
	arrangement func(k *Kernel, file ram.Unarranged, guess ram.Arrangement) (ram.Arrangement, error)

	sizes   []addr.Pages // that a base page may have
	same    []string     // symbols of the note that have the same name in the symbol table
	bases   []string     // variables that tell one boot from another; what is not there does not count
	machine ram.Machine
}

var architectures = []*architecture{&amd64, &arm64}

// linear is a mapping in one piece: from virt.Start on, which is phys.
type linear struct {
	virt addr.VirtRange
	phys addr.Phys
}

// translate is only for addresses within.
func (l *linear) translate(va addr.Virt) addr.Phys { return l.phys + addr.Phys(va-l.virt.Start) }

// architectureOf tells by its note what a kernel runs on, and how large its base pages are.
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

// pageSize is what a kernel says that its base pages have.
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

// top is where the last piece of memory ends.
func (k *Kernel) top() (top addr.Phys) {
	for _, r := range k.ranges {
		top = max(top, r.End)
	}
	return top
}
