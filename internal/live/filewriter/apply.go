package filewriter

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

const (
	// Workers is how many chunks are in flight at once, each in a system call that
	// blocks. The data is moved by the disks' DMA, not by this CPU: several requests
	// keep the disks busy.
	Workers = 16

	// chunk is how much is read from the staging disk in one request, in
	// bytes: half a huge page, so that a buffer is physically contiguous and a
	// request has few segments.
	chunk = 1 << 20

	// sector is the alignment of direct I/O, in bytes. Runs are pages, or
	// blocks of a file system with smaller blocks: sector divides both.
	sector = 512

	// page is the unit of the page cache, in bytes.
	page = 4096
)

// Apply brings the files of a plan to the state the dead kernel had in memory. The
// plan is in the staging file, and the files are in the file system of type kind that
// is mounted on mount. died is when the dead kernel ended: if it is not zero, a file
// that was changed later is left alone.
func Apply(mount *os.File, kind string, staging *os.File, r wire.ApplyRequest, died time.Time) (wire.ApplyResult, error) {
	var result wire.ApplyResult
	files, err := readPlan(staging, r)
	if err != nil {
		return result, err
	}
	w := &writer{mount: int(mount.Fd()), staging: int(staging.Fd()), kind: kind}
	if r.AttrsLen > 0 {
		attrs, err := readList(staging, r.Attrs, r.AttrsLen, wire.DecodeAttrs)
		if err == nil {
			err = w.restore(mount, files, attrs, died, &result)
		}
		return result, err
	}
	err = measure(&result, "write files", func() error { return w.writeAll(files, nil) })
	for i := range w.targets {
		w.targets[i].report(&result)
	}
	return result, err
}

func measure(r *wire.ApplyResult, name string, work func() error) error {
	begin := time.Now()
	err := work()
	r.Phases = append(r.Phases, wire.PhaseTime{Name: name, Took: time.Since(begin)})
	return err
}

func readPlan(staging *os.File, r wire.ApplyRequest) ([]wire.File, error) {
	return readList(staging, r.Plan, r.Len, wire.DecodePlan)
}

// readList reads n bytes at off of the staging disk and decodes them.
func readList[T any](staging *os.File, off, n int64, decode func([]byte) ([]T, error)) ([]T, error) {
	size, err := staging.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, fmt.Errorf("size staging disk: %w", err)
	}
	if off < 0 || n <= 0 || off%sector != 0 || off > size || n > size-off {
		return nil, fmt.Errorf("plan at %d of %d bytes is not on the staging disk of %d", off, n, size)
	}
	raw, err := unix.Mmap(-1, 0, int(roundUp(n)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map buffer for a plan of %d bytes: %w", n, err)
	}
	defer func() { _ = unix.Munmap(raw) }()
	if err := readFull(int(staging.Fd()), raw, off); err != nil {
		return nil, fmt.Errorf("read plan: %w", err)
	}
	return decode(raw[:n])
}

func roundUp(n int64) int64 { return (n + sector - 1) &^ (sector - 1) }

// piece is the part of a run that one chunk of the staging disk holds.
type piece struct {
	target *target
	off    int64 // in the file
	len    int64
	staged int64 // on the staging disk
}

// batch is what is read from the staging disk at once.
type batch struct {
	start, end int64 // on the staging disk
	pieces     []piece
}

// writer writes the files of one plan.
type writer struct {
	mount, staging int
	kind           string // type of the file system
	targets        []target
}

// writeAll goes through the staging disk in large pieces, whatever the size of
// the files, and finishes each file with its last piece. about is nil, or has the
// rest of what is known about each of the files.
func (w *writer) writeAll(files []wire.File, about []*unlogged) error {
	w.targets = make([]target, len(files))
	var pieces []piece
	var bare []*target // files without data to be written: only size and times are set
	for i, f := range files {
		t := &w.targets[i]
		t.file, t.kind = f, w.kind
		if about != nil {
			t.unlogged, t.root = about[i], about[i].attr.Root
		}
		before := len(pieces)
		pieces = t.cut(pieces)
		t.left.Store(int32(len(pieces) - before))
		if len(pieces) == before {
			bare = append(bare, t)
		}
	}
	batches := gather(pieces)
	bufs, free, err := buffers(Workers)
	if err != nil {
		return err
	}
	defer free()
	var next atomic.Int64
	var wg sync.WaitGroup
	for _, buf := range bufs {
		wg.Go(func() {
			for {
				i := int(next.Add(1) - 1)
				if i < len(batches) {
					w.write(batches[i], buf)
				} else if i -= len(batches); i < len(bare) {
					bare[i].finish(w.mount)
				} else {
					return
				}
			}
		})
	}
	wg.Wait()
	return nil
}

// cut adds the file's runs to pieces, in pieces that fit in a buffer.
func (t *target) cut(pieces []piece) []piece {
	for _, r := range t.file.Runs {
		for done := int64(0); done < r.Len; done += chunk {
			pieces = append(pieces, piece{target: t, off: r.Off + done, len: min(r.Len-done, chunk), staged: r.Staged + done})
		}
	}
	return pieces
}

// gather puts pieces that are close together on the staging disk into batches that
// fit in a buffer.
func gather(pieces []piece) []batch {
	slices.SortStableFunc(pieces, func(a, b piece) int { return cmp.Compare(a.staged, b.staged) })
	var batches []batch
	for _, p := range pieces {
		end := roundUp(p.staged + p.len)
		if n := len(batches); n > 0 && end-batches[n-1].start <= chunk {
			last := &batches[n-1]
			last.end = max(last.end, end)
			last.pieces = append(last.pieces, p)
			continue
		}
		batches = append(batches, batch{start: p.staged, end: end, pieces: []piece{p}})
	}
	return batches
}

// write reads one batch and writes its pieces.
func (w *writer) write(b batch, buf []byte) {
	data := buf[:b.end-b.start]
	err := readFull(w.staging, data, b.start)
	for _, p := range b.pieces {
		if err != nil {
			p.target.fail(fmt.Errorf("read staging disk: %w", err))
		} else {
			p.target.write(w.mount, data[p.staged-b.start:], p.off, p.len)
		}
		if p.target.left.Add(-1) == 0 {
			p.target.finish(w.mount)
		}
	}
}

func readFull(fd int, b []byte, off int64) error {
	return ioFull(unix.Pread, fd, b, off, io.ErrUnexpectedEOF)
}

func writeFull(fd int, b []byte, off int64) error {
	return ioFull(unix.Pwrite, fd, b, off, io.ErrShortWrite)
}

func ioFull(call func(int, []byte, int64) (int, error), fd int, b []byte, off int64, short error) error {
	for len(b) > 0 {
		n, err := call(fd, b, off)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return short
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// buffers maps count direct I/O buffers of a chunk each, on huge pages if the
// kernel has any to give. It also returns the function that unmaps them.
func buffers(count int) ([][]byte, func(), error) {
	const huge = 2 << 20
	arena, err := unix.Mmap(-1, 0, count*chunk+huge, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, nil, fmt.Errorf("map %d buffers: %w", count, err)
	}
	// Only a hint: without it the buffers are scattered pages, and slower.
	_ = unix.Madvise(arena, unix.MADV_HUGEPAGE)
	start := -uintptr(unsafe.Pointer(&arena[0])) % huge
	all := make([][]byte, count)
	for i := range all {
		from := int(start) + i*chunk
		all[i] = arena[from : from+chunk : from+chunk]
	}
	return all, func() { _ = unix.Munmap(arena) }, nil
}
