package salvage

import (
	"bytes"
	"errors"
	"fmt"
	"runtime"
	"sort"
	"sync"

	"understudy.dev/understudy/dead/addr"
)

// StagingSize returns how many bytes Gather needs.
func (p *Plan) StagingSize() int64 { return p.staged }

// ErrStaging says that the staging area is too small.
var ErrStaging = errors.New("staging area is too small")

// Gather copies the bytes of all runs into dst, each to its Staged offset. The bytes
// behind a run, up to the next multiple of addr.PageSize, are set to zero. If memory
// is absent, Gather fails, and dst must not be used.
func (p *Plan) Gather(dst []byte) error {
	if int64(len(dst)) < p.staged {
		return fmt.Errorf("gather: %w: %d bytes of %d", ErrStaging, len(dst), p.staged)
	}
	workers := max(1, min(2, runtime.GOMAXPROCS(0)))
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		lo, hi := p.cut(w, workers), p.cut(w+1, workers)
		wg.Go(func() { errs[w] = p.gather(dst, lo, hi) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// cut is where the stretch of worker w begins: at a page, so that no two
// workers touch the same one.
func (p *Plan) cut(w, workers int) int64 {
	return addr.AlignUp(p.staged * int64(w) / int64(workers))
}

// gather fills the staging area from lo to hi.
func (p *Plan) gather(dst []byte, lo, hi int64) (err error) {
	first := sort.Search(len(p.segments), func(i int) bool {
		s := &p.segments[i]
		return s.staged+s.n+s.pad > lo
	})
	for i := first; i < len(p.segments) && p.segments[i].staged < hi; i++ {
		s := &p.segments[i]
		end := s.staged + s.n
		if from, to := max(s.staged, lo), min(end, hi); from < to {
			b := s.disk
			if b != nil {
				b = b[from-s.staged:]
			} else if b, err = p.mem.View(s.phys+addr.Phys(from-s.staged), int(to-from)); err != nil {
				return fmt.Errorf("gather: %w", err)
			}
			copy(dst[from:to], b)
		}
		if end >= lo && end < hi {
			zero(dst[end : end+s.pad])
		}
	}
	return nil
}

var zeros [addr.PageSize]byte

// zero clears b unless it is zero already, as fresh memory is: reading takes half of the
// memory's time that writing does.
func zero(b []byte) {
	if !bytes.Equal(b, zeros[:len(b)]) {
		clear(b)
	}
}
