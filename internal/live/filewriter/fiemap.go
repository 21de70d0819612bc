package filewriter

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// The request FS_IOC_FIEMAP, _IOWR('f', 11, struct fiemap), and its flags
// (include/uapi/linux/fiemap.h).
const (
	fsIocFiemap   = 0xc020660b
	fiemapExtents = 128 // per request

	fiemapLast      = 0x1
	fiemapUnwritten = 0x800
	// Extents whose location is not known, is not allocated yet, or does not have the
	// bytes themselves: UNKNOWN, DELALLOC, ENCODED, DATA_ENCRYPTED, NOT_ALIGNED,
	// DATA_INLINE, DATA_TAIL, UNWRITTEN.
	fiemapElsewhere = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400 | fiemapUnwritten
)

type fiemapExtent struct {
	Logical, Physical, Length uint64 // bytes
	_                         [2]uint64
	Flags                     uint32
	_                         [3]uint32
}

type fiemap struct {
	Start, Length        uint64
	Flags, Mapped, Count uint32
	_                    uint32
	Extents              [fiemapExtents]fiemapExtent
}

// extents returns the extents of a file, ascending.
func extents(fd int) ([]fiemapExtent, error) {
	var out []fiemapExtent
	for start := uint64(0); ; {
		m := fiemap{Start: start, Length: ^uint64(0) - start, Count: fiemapExtents}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), fsIocFiemap, uintptr(unsafe.Pointer(&m)))
		if errno != 0 {
			return nil, fmt.Errorf("map file: %w", errno)
		}
		if m.Mapped > fiemapExtents {
			return nil, errors.New("map file: more extents than asked for")
		}
		out = append(out, m.Extents[:m.Mapped]...)
		if m.Mapped == 0 || m.Extents[m.Mapped-1].Flags&fiemapLast != 0 {
			return out, nil
		}
		last := m.Extents[m.Mapped-1]
		start = last.Logical + last.Length
	}
}

// checkExtents checks that a file has all of the wanted extents on its disk.
func checkExtents(fd int, wanted []wire.Extent) error {
	if len(wanted) == 0 {
		return nil
	}
	all, err := extents(fd)
	if err != nil {
		return err
	}
	for _, p := range wanted {
		at, end := uint64(p.Off), uint64(p.Off+p.Len)
		for _, e := range all {
			if e.Logical > at || e.Logical+e.Length <= at {
				continue
			}
			if e.Flags&fiemapElsewhere != 0 || e.Physical+at-e.Logical != uint64(p.Disk)+at-uint64(p.Off) {
				break
			}
			at = min(end, e.Logical+e.Length)
		}
		if at < end {
			return fmt.Errorf("%d bytes of its content at %d are not in memory, and their extents on the disk are not those that the dead kernel had: the disk may have an older state of them", end-at, at)
		}
	}
	return nil
}
