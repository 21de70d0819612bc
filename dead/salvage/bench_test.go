package salvage_test

import (
	"sync"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/lab/compare"
	"understudy.dev/understudy/internal/lab/fixture"
)

// BenchmarkPlan plans for 20,000 dirty inodes, of a kernel that was found before.
func BenchmarkPlan(b *testing.B) {
	image := fixture.Get(b, fixture.Many)
	k := openKernel(b, image)
	id := uuidOf(b, image.Disks[0])
	files := 0
	compare.Run(b, compare.Time(b, "plan", func() error {
		p, err := salvage.New(k, id)
		if err == nil {
			files = len(p.Files)
		}
		return err
	}))
	b.ReportMetric(float64(files), "files")
}

// BenchmarkCached plans for 100 dirty inodes among 1,000,000 that are cached, and, for
// comparison, looks at every cached one.
func BenchmarkCached(b *testing.B) {
	image := fixture.Get(b, fixture.Cached)
	k := openKernel(b, image)
	id := uuidOf(b, image.Disks[0])
	c, err := pagecache.Open(k)
	if err != nil {
		b.Fatal(err)
	}
	s, err := c.Superblock(id)
	if err != nil {
		b.Fatal(err)
	}
	files, cached := 0, 0
	r := compare.Run(b,
		compare.Time(b, "plan", func() error {
			p, err := salvage.New(k, id)
			if err == nil {
				files = len(p.Files)
			}
			return err
		}),
		compare.Time(b, "all", func() error {
			cached = 0
			for _, err := range c.Inodes(s) {
				if err != nil {
					return err
				}
				cached++
			}
			return nil
		}),
	)
	r.Ratio(b, "all-of-plan", "all", "plan")
	b.ReportMetric(float64(files), "files")
	b.ReportMetric(float64(cached), "cached")
}

// BenchmarkMemorySize salvages the same files of a machine with 1 GiB and of one with
// 16 GiB. Only the time to find the note may differ.
func BenchmarkMemorySize(b *testing.B) {
	var ways []compare.Way
	for name, spec := range map[string]fixture.Spec{"1G": fixture.Little, "16G": fixture.Big} {
		image := fixture.Get(b, spec)
		id := uuidOf(b, image.Disks[0])
		mem, err := ram.OpenFile(image.RAM)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { mem.Close() })
		var k *kernel.Kernel
		var p *salvage.Plan
		find := compare.Time(b, "find-"+name, func() (err error) { k, err = kernel.Find(mem); return err })
		plan := compare.Time(b, "plan-"+name, func() (err error) { p, err = salvage.New(k, id); return err })
		find.Do()
		plan.Do()
		dst := make([]byte, p.StagingSize())
		ways = append(ways, find, plan, compare.Time(b, "gather-"+name, func() error { return p.Gather(dst) }))
	}
	r := compare.Run(b, ways...)
	for _, step := range []string{"find", "plan", "gather"} {
		r.Ratio(b, step+"-16G-of-1G", step+"-16G", step+"-1G")
	}
}

// BenchmarkGather compares Gather with plain copies of the same pages in the same order,
// with as many threads, into the same memory. The ratio is that of their speeds: 1 is as
// fast as a plain copy.
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
			pages, used := pagesOf(b, p, k.Memory(), dst)
			r := compare.Run(b,
				compare.Time(b, "gather", func() error { return p.Gather(dst) }),
				compare.Time(b, "pages", func() error { copyAll(pages); return nil }),
				compare.Time(b, "used", func() error { copyAll(used); return nil }),
			)
			r.Ratio(b, "of-memcpy", "pages", "gather")
			r.Ratio(b, "of-memcpy-used", "used", "gather")
			b.ReportMetric(float64(len(dst))/1e6, "MB")
		})
	}
}

// plainCopy is one page to be copied.
type plainCopy struct{ to, from []byte }

// pagesOf lists every page of a plan twice: as a whole, and only its bytes that are in
// the plan.
func pagesOf(b *testing.B, p *salvage.Plan, mem ram.Memory, dst []byte) (pages, used []plainCopy) {
	b.Helper()
	for i := range p.Files {
		for r := range p.Files[i].Runs {
			run := &p.Files[i].Runs[r]
			at := run.Staged
			for phys, n := range run.Physical() {
				for done := int64(0); done < n; {
					pa := phys + addr.Phys(done)
					m := min(n-done, addr.PageSize-int64(pa%addr.PageSize))
					whole, err := mem.View(pa-pa%addr.PageSize, addr.PageSize)
					if err != nil {
						b.Fatal(err)
					}
					pages = append(pages, plainCopy{dst[at&^(addr.PageSize-1):][:addr.PageSize], whole})
					used = append(used, plainCopy{dst[at : at+m], whole[pa%addr.PageSize:]})
					at, done = at+m, done+m
				}
			}
		}
	}
	return pages, used
}

// copyAll copies with two threads.
func copyAll(all []plainCopy) {
	var wg sync.WaitGroup
	for _, half := range [][]plainCopy{all[:len(all)/2], all[len(all)/2:]} {
		wg.Go(func() {
			for _, c := range half {
				copy(c.to, c.from)
			}
		})
	}
	wg.Wait()
}
