package metal

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Range is a range of physical addresses, or of I/O ports. End is the first that is not in it.
type Range struct {
	Start uint64 `json:"start"`
	End   uint64 `json:"end"`
}

// Len is how many bytes, or ports, are in the range.
func (r Range) Len() uint64 { return r.End - r.Start }

// Contains says whether all of o is in r.
func (r Range) Contains(o Range) bool { return r.Start <= o.Start && o.End <= r.End }

// overlaps says whether r and o have anything in common.
func (r Range) overlaps(o Range) bool { return r.Start < o.End && o.Start < r.End }

func (r Range) String() string { return fmt.Sprintf("%#x-%#x", r.Start, r.End) }

// Resource is one line of /proc/iomem or /proc/ioports (kernel/resource.c, r_show).
type Resource struct {
	Range
	Name  string
	Depth int // 0: not inside another
}

// maxResources bounds what is read: a large machine has some thousands.
const maxResources = 1 << 16

// errHidden is what an unprivileged reader gets: to it, all addresses are zero.
var errHidden = errors.New("its addresses are hidden: run as root")

// ParseResources reads /proc/iomem or /proc/ioports.
func ParseResources(r io.Reader) ([]Resource, error) {
	var all []Resource
	hidden := true
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		res, err := parseResource(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("read resources: line %d: %w", len(all)+1, err)
		}
		hidden = hidden && res.Range == Range{0, 1}
		if all = append(all, res); len(all) > maxResources {
			return nil, fmt.Errorf("read resources: more than %d", maxResources)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read resources: %w", err)
	}
	if len(all) == 0 {
		return nil, errors.New("read resources: there are none")
	}
	if hidden {
		return nil, fmt.Errorf("read resources: %w", errHidden)
	}
	return all, nil
}

func parseResource(line string) (Resource, error) {
	text := strings.TrimLeft(line, " ")
	where, name, ok := strings.Cut(text, " : ")
	first, last, ok2 := strings.Cut(where, "-")
	if !ok || !ok2 {
		return Resource{}, fmt.Errorf("%q is not START-END : NAME", line)
	}
	start, err := strconv.ParseUint(first, 16, 64)
	if err != nil {
		return Resource{}, err
	}
	end, err := strconv.ParseUint(last, 16, 64)
	if err != nil {
		return Resource{}, err
	}
	if end < start || end+1 == 0 {
		return Resource{}, fmt.Errorf("%q has no end after its start", line)
	}
	return Resource{Range: Range{start, end + 1}, Name: name, Depth: (len(line) - len(text)) / 2}, nil
}

// SystemRAM is the name of memory that a kernel uses.
const SystemRAM = "System RAM"

// firmwareMemory is the memory that a kernel got from its firmware, in ascending order: what memmap= can
// reserve.
func firmwareMemory(all []Resource) (out []Range) {
	for _, r := range all {
		if r.Name == SystemRAM {
			out = append(out, r.Range)
		}
	}
	slices.SortFunc(out, func(a, b Range) int { return cmp.Compare(a.Start, b.Start) })
	return out
}

// Memory is the memory that the running kernel uses, in ascending order: the memory from the firmware, and
// memory that drivers have added, such as CXL memory ("System RAM (kmem)"; drivers/dax/kmem.c,
// drivers/virtio/virtio_mem.c).
func Memory(all []Resource) []Range {
	out := firmwareMemory(all)
	for _, r := range all {
		if strings.HasPrefix(r.Name, SystemRAM+" (") {
			out = append(out, r.Range)
		}
	}
	slices.SortFunc(out, func(a, b Range) int { return cmp.Compare(a.Start, b.Start) })
	return out
}
