package metal

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// window is a piece of physical memory, mapped for this process.
type window struct {
	all  []byte // of whole pages
	data []byte
}

// mapPhysical maps physical memory through /dev/mem.
func mapPhysical(r Range) (*window, error) {
	f, err := os.OpenFile("/dev/mem", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("map memory %v: %w", r, err)
	}
	defer f.Close()
	start := r.Start &^ (pageBytes - 1)
	end := (r.End + pageBytes - 1) &^ (pageBytes - 1)
	all, err := unix.Mmap(int(f.Fd()), int64(start), int(end-start), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map memory %v: %w", r, err)
	}
	return &window{all, all[r.Start-start:][:r.Len()]}, nil
}

func (w *window) Close() error { return unix.Munmap(w.all) }

// load32 and store32 access a word, of a device perhaps, once and as a whole.
func (w *window) load32(off int) uint32 {
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&w.data[off])))
}

func (w *window) load8(off int) byte {
	return byte(w.load32(off&^3) >> (8 * (off & 3)))
}

func (w *window) store32(off int, v uint32) { store32((*uint32)(unsafe.Pointer(&w.data[off])), v) }

// store32 is a plain store, unlike atomic.StoreUint32, which locks the bus and reads first.
//
//go:nosplit
//go:noinline
func store32(p *uint32, v uint32) { *p = v }

// load64 and store64 access a word of the status page.
func (w *window) load64(off int) uint64 {
	return atomic.LoadUint64((*uint64)(unsafe.Pointer(&w.data[off])))
}

func (w *window) store64(off int, v uint64) {
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&w.data[off])), v)
}

// write puts pieces into memory, and reads them back.
func write(pieces []Piece) error {
	const step = 16 << 20
	for _, p := range pieces {
		for off := 0; off < len(p.Bytes); off += step {
			part := p.Bytes[off:min(len(p.Bytes), off+step)]
			at := p.At + uint64(off)
			w, err := mapPhysical(Range{at, at + uint64(len(part))})
			if err != nil {
				return err
			}
			copy(w.data, part)
			same := string(w.data) == string(part)
			if err := w.Close(); err != nil {
				return err
			}
			if !same {
				return fmt.Errorf("write memory at %#x: it does not read back: is the range really memory?", at)
			}
		}
	}
	return nil
}

// log is the ring that the understudy writes its console to: how many bytes were ever
// written, then the ring.
type log struct{ *window }

const logHead = 64

func (l log) ring() []byte { return l.data[logHead:] }

// Write never fails.
func (l log) Write(b []byte) (int, error) {
	ring, at := l.ring(), l.load64(0)
	for _, c := range b {
		ring[at%uint64(len(ring))] = c
		at++
	}
	l.store64(0, at)
	return len(b), nil
}

// text is what is in the ring, the oldest first.
func (l log) text() []byte {
	ring, n := l.ring(), binary.LittleEndian.Uint64(l.data)
	if n <= uint64(len(ring)) {
		return append([]byte(nil), ring[:n]...)
	}
	at := n % uint64(len(ring))
	return append(append([]byte(nil), ring[at:]...), ring[:at]...)
}
