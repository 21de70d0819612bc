package ram_test

import (
	"path/filepath"
	"testing"
	"time"

	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/compare"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/ramtest"
)

// scannable hides the note of a dump.
type scannable struct{ ram.Sparse }

// BenchmarkFindInDump opens a compressed dump and finds the kernel in it, by the note in
// its header, and by searching all its memory.
func BenchmarkFindInDump(b *testing.B) {
	d := openDead(b, fixture.Get(b, fixture.Basic))
	path := filepath.Join(b.TempDir(), "dump")
	if err := ramtest.Create(path, ramtest.Kdump{Codec: ramtest.Zlib, Level: 1, Note: d.elf.Note}, d.pieces); err != nil {
		b.Fatal(err)
	}
	find := func(as func(ram.Memory) ram.Memory) func() time.Duration {
		return func() time.Duration {
			start := time.Now()
			mem, err := ram.OpenFile(path)
			if err != nil {
				b.Fatal(err)
			}
			defer mem.Close()
			if _, err := kernel.Find(as(mem)); err != nil {
				b.Fatal(err)
			}
			return time.Since(start)
		}
	}
	r := compare.Run(b,
		compare.Way{Name: "noted", Do: find(func(m ram.Memory) ram.Memory { return m })},
		compare.Way{Name: "scanned", Do: find(func(m ram.Memory) ram.Memory { return scannable{m.(ram.Sparse)} })},
	)
	r.Ratio(b, "scanned-of-noted", "scanned", "noted")
}
