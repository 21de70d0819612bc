//go:build unix

package ram

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/dead/addr"
)

// parts is a file whose offsets are physical addresses, and of which only some ranges may
// be mapped: /dev/mem.
type parts struct {
	image
	mapped [][]byte // of each range of memory
}

// OpenRanges opens memory of the machine that this program runs on, which a kernel other than
// the running one uses or has used, through a file whose offsets are physical
// addresses. The ranges are that kernel's memory; a page that is not wholly in a range
// is left out. Mapping costs the running kernel 2 MiB for each GiB.
func OpenRanges(path string, ranges []addr.PhysRange) (Memory, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open memory: %w", err)
	}
	defer f.Close()
	p := &parts{image: image{info: Info{Format: "memory of this machine"}}}
	x := make(extents, 0, len(ranges))
	for _, r := range joined(ranges) {
		r.Start = (r.Start + addr.PageSize - 1) &^ (addr.PageSize - 1)
		r.End &^= addr.PageSize - 1
		if r.Start >= r.End || r.End > maxPhys {
			continue
		}
		x = append(x, extent{phys: r})
		b, err := unix.Mmap(int(f.Fd()), int64(r.Start), int(r.Len()), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open memory %v to %v: %w", r.Start, r.End, err), p.Close())
		}
		p.mapped = append(p.mapped, b)
	}
	if len(x) == 0 {
		return nil, errors.New("open memory: no range of memory is usable")
	}
	p.setMemory(x.ranges(), x.bytes())
	return p, nil
}

func (p *parts) View(pa addr.Phys, n int) ([]byte, error) {
	i, found := slices.BinarySearchFunc(p.memory, pa, func(r addr.PhysRange, pa addr.Phys) int {
		switch {
		case r.End <= pa:
			return -1
		case r.Start > pa:
			return 1
		}
		return 0
	})
	switch {
	case !found || i >= len(p.mapped):
		return nil, p.fault(pa, n, pa)
	case n < 0 || uint64(n) > uint64(p.memory[i].End-pa): // adjacent ranges are joined
		return nil, p.fault(pa, n, p.memory[i].End)
	}
	off := int(pa - p.memory[i].Start)
	return p.mapped[i][off : off+n : off+n], nil
}

func (p *parts) Close() error {
	var errs []error
	for _, b := range p.mapped {
		errs = append(errs, unix.Munmap(b))
	}
	p.mapped = nil
	return errors.Join(errs...)
}
