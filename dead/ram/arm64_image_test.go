package ram_test

import (
	"bytes"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/fixture"
)

// TestSameARM64 checks that what QEMU made of an arm64 machine, an ELF core and a kdump-compressed
// file with blocks of 64 KiB, has the bytes of its RAM file, where the kernel has them.
func TestSameARM64(t *testing.T) {
	image := fixture.Get(t, fixture.ARM64("newest-cloud-arm64"))
	open := func(path string) ram.Memory {
		mem, err := ram.OpenFile(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { mem.Close() })
		k, err := kernel.Find(mem)
		if err != nil {
			t.Fatal(err)
		}
		return k.Memory()
	}
	want := open(image.RAM)
	for _, path := range []string{image.Dump, image.Beside(fixture.QEMUKdump)} {
		got := open(path)
		if !slices.Equal(got.Ranges(), want.Ranges()) || len(want.Ranges()) != 1 || want.Ranges()[0].Start != 1<<30 {
			t.Fatalf("%s has %v, not %v", path, got.Ranges(), want.Ranges())
		}
		const step = 1<<20 + 3*addr.PageSize // not whole blocks
		for r := want.Ranges()[0]; r.Start < r.End; r.Start += step {
			n := int(min(step, r.Len()))
			a, err := want.View(r.Start, n)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := got.View(r.Start, n); err != nil || !bytes.Equal(a, b) {
				t.Fatalf("%s differs behind %v: %v", path, r.Start, err)
			}
		}
	}
}
