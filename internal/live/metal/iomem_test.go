package metal

import (
	"slices"
	"strings"
	"testing"
)

// kmem is memory of CXL that a driver has added.
const kmem = "c00000000-dffffffff : Soft Reserved\n  c00000000-dffffffff : dax0.0\n    c00000000-dffffffff : System RAM (kmem)\n"

func TestParseResources(t *testing.T) {
	all, err := ParseResources(strings.NewReader(iomem))
	if err != nil {
		t.Fatal(err)
	}
	want := []Range{{0x1000, 0x9fc00}, {0x100000, 0x7ffe0000}, {0x100000000, 0x180000000}}
	if got := Memory(all); !slices.Equal(got, want) {
		t.Errorf("memory is %v, not %v", got, want)
	}
	if r := all[7]; r.Name != "Kernel code" || r.Depth != 1 {
		t.Errorf("%+v is not the kernel's code, in memory", r)
	}
	// Memory that a driver has added is the kernel's, but is not there yet when memmap=
	// takes effect.
	if all, err = ParseResources(strings.NewReader(iomem + kmem)); err != nil {
		t.Fatal(err)
	}
	if got := Memory(all); !slices.Equal(got, append(want, Range{0xc00000000, 0xe00000000})) {
		t.Errorf("memory is %v", got)
	}
	if r, err := Reserve(all, 1<<30); err != nil || r.High.Start >= 0xc00000000 {
		t.Errorf("%v is reserved, %v", r, err)
	}
	for _, bad := range []string{
		"", "nonsense\n", "10-1 : backwards\n", "0-ffffffffffffffff : all\n", "x-1 : no number\n",
		"00000000-00000000 : System RAM\n  00000000-00000000 : Kernel code\n",
	} {
		if _, err := ParseResources(strings.NewReader(bad)); err == nil {
			t.Errorf("%q was parsed", bad)
		}
	}
}

func TestReserve(t *testing.T) {
	parse := func(text string) []Resource {
		t.Helper()
		all, err := ParseResources(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	for _, c := range []struct {
		name, iomem string
		high        uint64
		want        string // empty: refused
	}{
		{"above 4 GiB", iomem, 1536 << 20, "0x20000+0x20000,0x7be00000+0x4000000,0x120000000+0x60000000"},
		{"more than there is above", iomem, 0x78000000, "0x20000+0x20000,0x7be00000+0x4000000,0x108000000+0x78000000"},
		{"below, under the other", "00001000-0009ffff : System RAM\n00100000-7fffffff : System RAM\n", 1 << 30, "0x20000+0x20000,0x7c000000+0x4000000,0x3c000000+0x40000000"},
		{"little memory", "00001000-0009ffff : System RAM\n00100000-1fffffff : System RAM\n", 1 << 30, ""},
		{"no low memory", "00100000-7fffffff : System RAM\n", 1 << 30, ""},
		{"too little asked for", iomem, 64 << 20, ""},
		{"no whole units", iomem, 1<<30 + 4096, ""},
	} {
		r, err := Reserve(parse(c.iomem), c.high)
		switch {
		case c.want == "" && err == nil:
			t.Errorf("%s: %v was reserved", c.name, r)
		case c.want != "" && (err != nil || r.String() != c.want):
			t.Errorf("%s: %v, %v; want %s", c.name, r, err, c.want)
		case err == nil:
			if again, err := ParseReservation("quiet " + strings.Join(r.Parameters(2), " ")); err != nil || again != r {
				t.Errorf("%s: its parameters say %v, %v", c.name, again, err)
			}
			if err := r.Left(parse(c.iomem)); err == nil {
				t.Errorf("%s: %v counts as left alone before it is", c.name, r)
			}
		}
	}
	r, err := ParseReservation(reserved)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Left(parse(iomemReserved)); err != nil {
		t.Error(err)
	}
}

func TestParseReservation(t *testing.T) {
	for _, bad := range []string{
		"quiet", Parameter, Parameter + "0x20000+0x40000", Parameter + "1+2,3+4,5+6",
		Parameter + "0x20000+0x20000,0x7be00000+0x4000000,0x7be00000+0x60000000",                // overlap
		Parameter + "0x20000+0x20000,0xfff00000+0x4000000,0x120000000+0x60000000",               // over 4 GiB
		Parameter + "0x80000+0x20000,0x7be00000+0x4000000,0x120000000+0x60000000",               // into the EBDA
		Parameter + "0x20000+0x20000,0x7be00000+0x4000000,0x120000000+0xffffffffffffffff",       // wraps
		Parameter + "0x20000+0x20000,0x7be00000+0x4000000,0x120000000+0x60000000,0x1000+0x1000", // four
		Parameter + "0x20000+0x20000,0x7be00000+0x4000000,0x120000000",                          // no length
	} {
		if r, err := ParseReservation(bad); err == nil {
			t.Errorf("%q is %v", bad, r)
		}
	}
}

func FuzzReservation(f *testing.F) {
	f.Add(reserved)
	f.Add(Parameter + "0x20000+0x40000")
	f.Fuzz(func(t *testing.T, line string) {
		r, err := ParseReservation(line)
		if err != nil {
			return
		}
		if again, err := ParseReservation(Parameter + r.String()); err != nil || again != r {
			t.Errorf("%q is %v, and that %v, %v", line, r, again, err)
		}
		if r.Low.End > 1<<20 || r.Mid.End > 1<<32 || r.Mid.overlaps(r.High) {
			t.Errorf("%v", r)
		}
	})
}

func FuzzParseResources(f *testing.F) {
	f.Add(iomem)
	f.Add(ioports)
	f.Fuzz(func(t *testing.T, text string) {
		all, err := ParseResources(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, r := range all {
			if r.Start >= r.End {
				t.Errorf("%+v is empty", r)
			}
		}
		if r, err := Reserve(all, MinHigh); err == nil {
			if err := r.check(); err != nil {
				t.Errorf("%v: %v", r, err)
			}
		}
	})
}
