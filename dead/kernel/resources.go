package kernel

import (
	"errors"
	"strings"

	"understudy.dev/understudy/dead/addr"
)

// Bounds of the kernel's resources: their number, and the length of a name.
const (
	maxResources    = 4096
	maxResourceName = 256
)

// Absent returns the memory that the kernel had and the image lacks: memory that was plugged into
// the machine after its start is not in the file of its initial memory.
func (k *Kernel) Absent() ([]addr.PhysRange, error) {
	all, err := k.systemRAM()
	var absent []addr.PhysRange
	for _, r := range all {
		if !within(k.ranges, r) {
			absent = append(absent, r)
		}
	}
	return absent, err
}

// systemRAM returns the memory that the kernel was told of: the resources with that name
// (kernel/resource.c; arch/arm64/kernel/setup.c, request_standard_resources; arch/x86/kernel/e820.c).
// Memory that virtio-mem and kmem add has a driver's name after that, and lies below another resource
// (mm/memory_hotplug.c, register_memory_resource).
func (k *Kernel) systemRAM() ([]addr.PhysRange, error) {
	l := k.types.Layout("resource")
	start, end, name := l.Field("start", 8), l.Field("end", 8), l.Field("name", 8)
	child, sibling := l.Field("child", 8), l.Field("sibling", 8)
	at, err := k.Symbol("iomem_resource")
	if err = errors.Join(err, l.Err()); err != nil {
		return nil, err
	}
	if at, err = k.Pointer(child.In(at)); err != nil {
		return nil, err
	}
	var found []addr.PhysRange
	level := []addr.Virt{at} // the next resource of each level
	for n := 0; len(level) > 0; n++ {
		last := len(level) - 1
		if level[last] == 0 {
			level = level[:last]
			continue
		}
		if n >= 2*maxResources {
			return nil, errors.New("iomem_resource: the tree is too large, or circular")
		}
		b, err := k.Bytes(level[last], l.Size)
		if err != nil {
			return nil, err
		}
		called := ""
		if at := name.Pointer(b); at != 0 {
			if called, err = k.CString(at, maxResourceName); err != nil {
				return nil, err
			}
		}
		level[last] = sibling.Pointer(b)
		if called == "System RAM" || strings.HasPrefix(called, "System RAM (") {
			found = append(found, addr.PhysRange{Start: addr.Phys(start.Uint(b)), End: addr.Phys(end.Uint(b)) + 1})
		} else {
			level = append(level, child.Pointer(b))
		}
	}
	return found, nil
}

// within reports whether r lies in one of the ranges.
func within(all []addr.PhysRange, r addr.PhysRange) bool {
	for _, has := range all {
		if has.Contains(r.Start, r.Len()) && r.Len() > 0 {
			return true
		}
	}
	return false
}
