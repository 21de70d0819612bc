package salvage_test

import (
	"sync"
	"testing"
	"time"

	"understudy/addr"
	"understudy/internal/fixture"
	"understudy/salvage"
)

// BenchmarkPlan plans for 20,000 dirty inodes, of a kernel that was found.
func BenchmarkPlan(b *testing.B) {
	image := fixture.Get(b, fixture.Many)
	k := openKernel(b, image)
	id := uuidOf(b, image.Disks[0])
	files := 0
	for b.Loop() {
		p, err := salvage.New(k, id)
		if err != nil {
			b.Fatal(err)
		}
		files = len(p.Files)
	}
	b.ReportMetric(float64(files), "files")
}

// BenchmarkGather gathers, and copies the same pages in the same order with as
// many threads into the same memory by nothing but copy: the metric is the
// ratio of the two speeds, taken in turns in one run.
func BenchmarkGather(b *testing.B) {
	for name, spec := range map[string]fixture.Spec{"basic": fixture.Basic, "many": fixture.Many} {
		b.Run(name, func(b *testing.B) {
			image := fixture.Get(b, spec)
			k := openKernel(b, image)
			p, err := salvage.New(k, uuidOf(b, image.Disks[0]))
			if err != nil {
				b.Fatal(err)
			}
			dst := make([]byte, p.StagingSize())
			for i := 0; i < len(dst); i += addr.PageSize {
				dst[i] = 1
			}
			halves := splitCopies(b, p, k.Memory(), dst)
			var gather, plain time.Duration
			for i := 0; b.Loop(); i++ {
				for turn := range 2 { // whoever is second has warmer caches
					start := time.Now()
					if turn == i%2 {
						if err := p.Gather(dst); err != nil {
							b.Fatal(err)
						}
						gather += time.Since(start)
					} else {
						copyAll(halves)
						plain += time.Since(start)
					}
				}
			}
			b.SetBytes(p.StagingSize())
			b.ReportMetric(float64(plain)/float64(gather), "of-memcpy")
		})
	}
}

// plainCopy is one page to be copied.
type plainCopy struct{ to, from []byte }

// splitCopies lists every page of a plan, in two halves.
func splitCopies(b *testing.B, p *salvage.Plan, mem interface {
	View(addr.Phys, int) ([]byte, error)
}, dst []byte) [2][]plainCopy {
	b.Helper()
	var all []plainCopy
	for i := range p.Files {
		for r := range p.Files[i].Runs {
			run := &p.Files[i].Runs[r]
			at := run.Staged
			for phys, n := range run.Physical() {
				for done := int64(0); done < n; done += addr.PageSize {
					m := min(n-done, addr.PageSize)
					from, err := mem.View(phys+addr.Phys(done), int(m))
					if err != nil {
						b.Fatal(err)
					}
					all = append(all, plainCopy{dst[at : at+m], from})
					at += m
				}
			}
		}
	}
	return [2][]plainCopy{all[:len(all)/2], all[len(all)/2:]}
}

func copyAll(halves [2][]plainCopy) {
	var wg sync.WaitGroup
	for _, half := range halves {
		wg.Go(func() {
			for _, c := range half {
				copy(c.to, c.from)
			}
		})
	}
	wg.Wait()
}
