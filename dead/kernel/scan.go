package kernel

import (
	"bytes"
	"iter"
	"runtime"
	"slices"
	"sync"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ram"
)

// scanChunk is how much a worker searches at a time, in bytes.
const scanChunk = 16 << 20

// A scanner yields the offsets of notes in a chunk of memory.
type scanner func(chunk []byte) iter.Seq[int]

// scan searches all memory in parallel, and returns where the notes are, in
// ascending order.
func scan(mem ram.Memory, find scanner) []addr.Phys {
	var (
		mu    sync.Mutex
		found []addr.Phys
		wg    sync.WaitGroup
		work  = make(chan addr.PhysRange)
	)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for r := range work {
				chunk, err := mem.View(r.Start, int(r.Len()))
				if err != nil {
					continue // absent: nothing to find there
				}
				for off := range find(chunk) {
					mu.Lock()
					found = append(found, r.Start+addr.Phys(off))
					mu.Unlock()
				}
			}
		})
	}
	for r := range chunks(mem) {
		work <- r
	}
	close(work)
	wg.Wait()
	slices.Sort(found)
	return slices.Compact(found)
}

// chunks cuts the memory that was ever touched into pieces. They overlap by a
// page, so that no note is cut.
func chunks(mem ram.Memory) iter.Seq[addr.PhysRange] {
	return func(yield func(addr.PhysRange) bool) {
		for _, r := range mem.Ranges() {
			for part := range touched(mem, r) {
				// Round to whole pages: a file's holes may end elsewhere.
				part.Start = max(r.Start, part.Start&^(addr.PageSize-1))
				part.End = min(r.End, (part.End+addr.PageSize-1)&^(addr.PageSize-1))
				for start := part.Start; start < part.End; start += scanChunk {
					end := min(start+scanChunk+addr.PageSize, part.End)
					if !yield(addr.PhysRange{Start: start, End: end}) {
						return
					}
				}
			}
		}
	}
}

func touched(mem ram.Memory, r addr.PhysRange) iter.Seq[addr.PhysRange] {
	if s, ok := mem.(ram.Sparse); ok {
		return s.Touched(r)
	}
	return func(yield func(addr.PhysRange) bool) { yield(r) }
}

// notesOnPages looks only at the start of each page, where the kernel puts its
// note. That touches one cache line in 64.
func notesOnPages(chunk []byte) iter.Seq[int] {
	return func(yield func(int) bool) {
		for off := 0; off < len(chunk); off += addr.PageSize {
			if _, ok := noteTextSize(chunk[off:]); ok && !yield(off) {
				return
			}
		}
	}
}

// notesAnywhere looks at every byte.
func notesAnywhere(chunk []byte) iter.Seq[int] {
	pattern := []byte(noteName + "\x00OSRELEASE=")
	return func(yield func(int) bool) {
		for pos := 0; ; {
			i := bytes.Index(chunk[pos:], pattern)
			if i < 0 {
				return
			}
			pos += i
			if pos >= noteHeadSize {
				if _, ok := noteTextSize(chunk[pos-noteHeadSize:]); ok && !yield(pos-noteHeadSize) {
					return
				}
			}
			pos += len(pattern)
		}
	}
}
