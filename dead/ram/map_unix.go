//go:build unix

package ram

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/dead/addr"
)

// mapped is a file whose bytes are physical memory, mapped read-only.
type mapped struct {
	image
	file    *os.File
	data    []byte
	extents extents
}

func mapFile(f *os.File, x extents, im image) (Memory, error) {
	var size int64
	for _, e := range x {
		size = max(size, e.end())
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map: %w", err)
	}
	return &mapped{image: im, file: f, data: data, extents: x}, nil
}

func (m *mapped) View(pa addr.Phys, n int) ([]byte, error) {
	if i := m.extents.find(pa); i >= 0 && n >= 0 && m.extents[i].phys.Contains(pa, uint64(n)) {
		b, err := m.slice(m.extents[i].off+int64(pa-m.extents[i].phys.Start), n)
		if err != nil {
			return nil, &Fault{Addr: pa, Len: n, Cause: err}
		}
		return b, nil
	}
	if absent, ok := m.extents.present(pa, n); !ok {
		return nil, m.fault(pa, n, absent)
	}
	return m.extents.assemble(pa, n, func(dst []byte, off int64) error {
		b, err := m.slice(off, len(dst))
		copy(dst, b)
		return err
	})
}

func (m *mapped) arranged(x extents, im image) Memory {
	return borrowed{&mapped{image: im, file: m.file, data: m.data, extents: x}}
}

func (m *mapped) slice(off int64, n int) ([]byte, error) {
	end := off + int64(n)
	if end > int64(len(m.data)) {
		return nil, os.ErrClosed
	}
	return m.data[off:end:end], nil
}

func (m *mapped) Close() error {
	if m.data == nil {
		return nil
	}
	data := m.data
	m.data = nil
	return errors.Join(unix.Munmap(data), m.file.Close())
}

// lseek(2) whence values; Linux and most others agree on them.
const (
	seekData = 3
	seekHole = 4
)

// Touched asks the file system where the file has holes. A file system that does not
// know reports none.
func (m *mapped) Touched(r addr.PhysRange) iter.Seq[addr.PhysRange] {
	return joinedSeq(func(yield func(addr.PhysRange) bool) {
		for e := range m.extents.within(r) {
			if !m.touched(e, yield) {
				return
			}
		}
	})
}

func (m *mapped) touched(e extent, yield func(addr.PhysRange) bool) bool {
	toPhys := func(off int64) addr.Phys { return e.phys.Start + addr.Phys(off-e.off) }
	for off := e.off; off < e.end(); {
		data, hole, ok := nextData(m.file, off, e.end())
		if !ok {
			return true
		}
		if !yield(addr.PhysRange{Start: toPhys(data), End: toPhys(hole)}) {
			return false
		}
		off = hole
	}
	return true
}

// nextData returns the next stretch of data in [off, end), or false if only a
// hole is left.
func nextData(f *os.File, off, end int64) (data, hole int64, ok bool) {
	if runtime.GOOS != "linux" {
		return off, end, true
	}
	data, err := f.Seek(off, seekData)
	switch {
	case errors.Is(err, unix.ENXIO):
		return 0, 0, false
	case err != nil:
		return off, end, true
	case data >= end:
		return 0, 0, false
	}
	hole, err = f.Seek(data, seekHole)
	if err != nil || hole <= data {
		return data, end, true
	}
	return data, min(hole, end), true
}
