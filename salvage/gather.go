package salvage

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"understudy/addr"
)

// StagingSize is how many bytes Gather needs.
func (p *Plan) StagingSize() int64 { return p.staged }

// ErrStaging says that the staging area is too small.
var ErrStaging = errors.New("staging area is too small")

// Gather copies the bytes of all runs into dst, each to its Staged offset. What
// follows a run up to the next multiple of addr.PageSize is set to zero. Memory
// that is absent is an error, and dst is then not to be used.
func (p *Plan) Gather(dst []byte) error {
	if int64(len(dst)) < p.staged {
		return fmt.Errorf("gather: %w: %d bytes of %d", ErrStaging, len(dst), p.staged)
	}
	jobs := p.jobs(dst)
	workers := max(1, min(2, runtime.GOMAXPROCS(0)))
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for _, j := range share(jobs, p.staged, w, workers) {
				if errs[w] = p.copy(j); errs[w] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// job is one contiguous copy.
type job struct {
	into []byte
	from addr.Phys
	pad  []byte // to be zeroed: after the last segment of a run
	at   int64  // staging offset of into
}

// maxCopy bounds one job, so that work is shared evenly even for a single large
// run of contiguous memory.
const maxCopy = 1 << 20

func (p *Plan) jobs(dst []byte) []job {
	var jobs []job
	for i := range p.Files {
		for j := range p.Files[i].Runs {
			run := &p.Files[i].Runs[j]
			at := run.Staged
			for _, seg := range run.segments {
				for done := int64(0); done < seg.n; {
					n := min(seg.n-done, maxCopy)
					jobs = append(jobs, job{into: dst[at : at+n], from: seg.phys + addr.Phys(done), at: at})
					at, done = at+n, done+n
				}
			}
			if end := addr.AlignUp(at); end > at {
				jobs[len(jobs)-1].pad = dst[at:end]
			}
		}
	}
	return jobs
}

// share returns the jobs of one worker: those that begin in its stretch of the
// staging area.
func share(jobs []job, size int64, w, workers int) []job {
	lo, hi := size*int64(w)/int64(workers), size*int64(w+1)/int64(workers)
	from, to := 0, len(jobs)
	for from < len(jobs) && jobs[from].at < lo {
		from++
	}
	for to > from && jobs[to-1].at >= hi {
		to--
	}
	return jobs[from:to]
}

func (p *Plan) copy(j job) error {
	b, err := p.mem.View(j.from, len(j.into))
	if err != nil {
		return fmt.Errorf("gather: %w", err)
	}
	copy(j.into, b)
	clear(j.pad)
	return nil
}
