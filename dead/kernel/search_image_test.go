package kernel

import (
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/fixture"
)

// TestSearchSymbols removes what a kernel's note says about the symbol
// table, as if the kernel were older, and checks that the same table is found by its form.
func TestSearchSymbols(t *testing.T) {
	mem, err := ram.OpenFile(fixture.Get(t, fixture.Basic).RAM)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	k, err := Find(mem)
	if err != nil {
		t.Fatal(err)
	}
	want, err := k.symbolTablesInNote()
	if err != nil {
		t.Fatal(err)
	}
	for key := range k.note.values {
		if strings.HasPrefix(key, "SYMBOL(kallsyms_") {
			delete(k.note.values, key)
		}
	}
	start := time.Now()
	stext, err := k.note.symbol("_stext")
	if err != nil {
		t.Fatal(err)
	}
	got, err := k.searchSymbols(stext)
	if err != nil || got != want {
		t.Errorf("found %+v, %v; want %+v", got, err, want)
	}
	t.Logf("searched for %v", time.Since(start))
	k.symbols = nil
	if err := k.loadSymbols(); err != nil {
		t.Error(err)
	}
}

// TestWallClock checks that the kernel's clock shows when the guest crashed, after the last thing that it did. This clock
// decides which of several kernels in one memory is the newest (newest.go).
func TestWallClock(t *testing.T) {
	for _, name := range fixture.Kernels {
		t.Run(name, func(t *testing.T) {
			image := fixture.Get(t, fixture.Everything(name))
			mem, err := ram.OpenFile(image.RAM)
			if err != nil {
				t.Fatal(err)
			}
			defer mem.Close()
			k, err := Find(mem)
			if err != nil {
				t.Fatal(err)
			}
			var last time.Time // when something was last changed
			for _, f := range image.Truth {
				if f.Mtime.After(last) {
					last = f.Mtime
				}
			}
			now, err := k.wallClock()
			at := time.Unix(int64(now), 0)
			if err != nil || at.Before(last.Add(-time.Second)) || at.After(image.Died.Add(time.Second)) {
				t.Errorf("its clock is at %v; its last change was at %v, and it was dead at %v: %v", at, last, image.Died, err)
			}
		})
	}
}

// FuzzSearch checks that what is found lies within the bytes searched.
func FuzzSearch(f *testing.F) {
	table, index := letters()
	f.Add(append(append(make([]byte, 64), table...), index...))
	f.Fuzz(func(t *testing.T, b []byte) {
		for at := range max(0, len(b)-len(tokenDigits)) {
			if string(b[at:at+len(tokenDigits)]) != string(tokenDigits) {
				continue
			}
			p, ok := partsAround(b, at)
			if !ok {
				continue
			}
			order := p.offsets < p.relativeBase && p.relativeBase < p.count && p.count < p.names && p.names < p.tokenTable
			if !order || int(p.tokenIndex)+2*tokenCount > len(b) {
				t.Errorf("found %+v in %d bytes", p, len(b))
			}
		}
	})
}
