package kernel_test

import (
	"testing"
	"time"

	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/compare"
	"understudy.dev/understudy/internal/lab/fixture"
)

// BenchmarkFind finds a kernel: for the first time; when its build is known; and when its build is
// known, in a file that has just been opened and no page of which is mapped yet.
func BenchmarkFind(b *testing.B) {
	for _, name := range fixture.Kernels {
		b.Run(name, func(b *testing.B) {
			spec := fixture.Everything(name)
			mem, path := openImage(b, spec), fixture.Get(b, spec).RAM
			known := kernel.KeepIn(b.TempDir())
			find := func(mem ram.Memory, options ...kernel.Option) error {
				k, err := kernel.Find(mem, options...)
				if err != nil {
					return err
				}
				return k.Keep()
			}
			if err := find(mem, known); err != nil {
				b.Fatal(err)
			}
			compare.Run(b,
				compare.Time(b, "cold", func() error { return find(mem) }),
				compare.Time(b, "known", func() error { return find(mem, known) }),
				compare.Way{Name: "opened", Do: func() time.Duration {
					start := time.Now()
					fresh, err := ram.OpenFile(path)
					if err != nil {
						b.Fatal(err)
					}
					defer fresh.Close()
					if err := find(fresh, known); err != nil {
						b.Fatal(err)
					}
					return time.Since(start)
				}},
			)
		})
	}
}
