package pagecache_test

import (
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
)

// TestSiblings checks that a refusal of an entry with several slots covers everything that the entry stands
// for, up to the end of the file: no page of it counts as a hole, or as saved.
func TestSiblings(t *testing.T) {
	holds := func(e addr.Virt) func(*world, addr.Virt) addr.Virt {
		return func(*world, addr.Virt) addr.Virt { return e }
	}
	folio := func(order byte, spoil func(w *world, f addr.Virt)) func(*world, addr.Virt) addr.Virt {
		return func(w *world, i addr.Virt) addr.Virt {
			f := w.folio(i, 0, order, 'a')
			spoil(w, f)
			return f
		}
	}
	as := func(*world, addr.Virt) {}
	cached := []string{"tmpfs", "ext4", "nfs4"}
	for name, tc := range map[string]struct {
		entry func(w *world, i addr.Virt) addr.Virt
		slots int
		shift byte // of the node
		pages int64
		kinds []string
		want  string
	}{
		"in swap":                   {holds(0x12345), 16, 0, 16, []string{"tmpfs"}, "0+16 no page in slot"},
		"in swap, beyond the end":   {holds(0x12345), 16, 0, 10, []string{"tmpfs"}, "0+10 no page in slot"},
		"in swap, a huge one":       {holds(0x12345), 8, 6, 512, []string{"tmpfs"}, "0+512 no page in slot"},
		"of direct access":          {holds(0x12345), 8, 6, 512, []string{"xfs"}, "0+512 direct access file"},
		"that is nowhere":           {holds(0x1238), 16, 0, 16, cached, "0+16 unreadable"},
		"of nothing":                {holds(0), 16, 0, 16, cached, "0+16 no page in slot"},
		"of another file":           {folio(2, func(w *world, f addr.Virt) { w.PutU64(f+pgMapping, 0) }), 16, 0, 16, cached, "0+16 page of another file"},
		"of another index":          {folio(2, func(w *world, f addr.Virt) { w.PutU64(f+pgIndex, 1<<20) }), 16, 0, 16, cached, "0+16 page of another index"},
		"broken":                    {folio(2, func(w *world, f addr.Virt) { w.PutU64(f+pgFlags, good|1<<pgHead|1<<pgPoison) }), 4, 0, 4, cached, "0+4 broken memory"},
		"of a size that cannot be":  {folio(30, as), 16, 0, 16, cached, "0+16 implausible folio"},
		"of fewer pages than slots": {folio(2, as), 16, 0, 16, cached, "0+16 page of another index"},
		"of one page":               {func(w *world, i addr.Virt) addr.Virt { return w.page(i, 0, good, 'a') }, 16, 0, 16, cached, "0+16 page of another index"},
	} {
		for _, kind := range tc.kinds {
			t.Run(name+", "+kind, func(t *testing.T) {
				w, _ := remote(t, "srv:/x")
				w.kind(kind)
				file := w.file(20, "file", tc.pages*addr.PageSize)
				if kind == "xfs" {
					w.PutU32(file+inFlags, pagecache.FlagDAX)
				}
				slots := map[int]addr.Virt{0: tc.entry(w, file)}
				for n := 1; n < tc.slots; n++ {
					slots[n] = 2 // a sibling of the first
				}
				w.head(file, 2+w.node(file, 0, 0, tc.shift, slots, 1))
				w.PutU64(file+inPages, 1)
				w.Finish(remoteTypes()...)
				w.checkUnsaved(t, []string{tc.want})
				w.checkHeld(t, []string{tc.want})
			})
		}
	}
}

// TestStraySiblings checks that a sibling that does not follow its entry is refused.
func TestStraySiblings(t *testing.T) {
	w := newWorld(t)
	w.kind("tmpfs")
	file := w.file(20, "file", 64*addr.PageSize)
	w.head(file, 2+w.node(file, 0, 0, 0, map[int]addr.Virt{
		0: w.page(file, 0, good, 'a'), 5: 0<<2 | 2, // not directly behind it
		8: w.folio(file, 8, 2, 'b'), 9: 8<<2 | 2, 10: 8<<2 | 2, 11: 8<<2 | 2,
		20: 21<<2 | 2, 21: w.page(file, 21, good, 'c'), // before it
	}, 0, 5, 8, 20, 21))
	w.PutU64(file+inPages, 6)
	w.Finish(types()...)
	want := []string{"a[0,4096)", "5+1 no page in slot", "b[32768,49152)", "20+1 no page in slot", "c[86016,90112)"}
	w.checkUnsaved(t, want)
	w.checkHeld(t, want)
}

// checkHeld checks the held bytes of each file of a world.
func (w *world) checkHeld(t *testing.T, want []string) {
	t.Helper()
	c, s := w.open(t)
	for inode, err := range c.Dirty(s) {
		if err != nil {
			t.Fatal(err)
		}
		if got := listed(c.Held(s, inode), w.Mem); !slices.Equal(got, want) {
			t.Errorf("held: %q, want %q", got, want)
		}
	}
}
