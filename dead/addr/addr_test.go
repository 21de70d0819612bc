package addr

import "testing"

func TestContains(t *testing.T) {
	r := PhysRange{Start: 0x1000, End: 0x3000}
	for _, tc := range []struct {
		a    Phys
		n    uint64
		want bool
	}{
		{0x1000, 0x2000, true},
		{0x1000, 0x2001, false},
		{0xfff, 1, false},
		{0x3000, 0, true},
		{0x3000, 1, false},
		{0x2fff, 1, true},
		{0x1000, ^uint64(0), false},
		{^Phys(0), 1, false},
	} {
		if got := r.Contains(tc.a, tc.n); got != tc.want {
			t.Errorf("%v contains %d bytes at %v: %v", r, tc.n, tc.a, got)
		}
		if got := (VirtRange{Start: 0x1000, End: 0x3000}).Contains(Virt(tc.a), tc.n); got != tc.want {
			t.Errorf("%d bytes at %v: %v", tc.n, Virt(tc.a), got)
		}
	}
	if (PhysRange{Start: 2, End: 1}).Len() != 0 {
		t.Error("an inverted range has bytes")
	}
}

func TestSpan(t *testing.T) {
	for _, tc := range []struct {
		span Span
		end  int64
		want Span
	}{
		{Span{0, 10}, 20, Span{0, 10}},
		{Span{0, 10}, 5, Span{0, 5}},
		{Span{8, 10}, 5, Span{8, 8}},
	} {
		if got := tc.span.Clip(tc.end); got != tc.want {
			t.Errorf("%v clipped to %d is %v", tc.span, tc.end, got)
		}
	}
	for n, want := range map[int64]int64{0: 0, 1: 4096, 4096: 4096, 4097: 8192} {
		if got := AlignUp(n); got != want {
			t.Errorf("%d rounds up to %d", n, got)
		}
	}
}

func TestConversions(t *testing.T) {
	for _, p := range []Pages{Pages4K, Pages16K, Pages64K} {
		size := p.Size()
		if p.PFN(Phys(18*size+5)) != 18 || p.Phys(18) != Phys(18*size) || p.Byte(3) != 3*size || p.Index(4*size-1) != 3 {
			t.Errorf("pages of %d bytes and bytes do not agree", size)
		}
		for n, want := range map[int64]Index{0: 0, 1: 1, size: 1, size + 1: 2, 1<<63 - 1: Index(1 << 62 >> p)} {
			if got := p.End(n); got != want {
				t.Errorf("%d bytes end at page %d of %d bytes", n, got, size)
			}
		}
	}
	if _, ok := (^Virt(0)).Add(1); ok {
		t.Error("a sum wrapped around unnoticed")
	}
	if d := Dev(254<<20 | 16); d.String() != "254:16" {
		t.Error(d)
	}
	if Virt(0x7fff_ffff_ffff).IsKernel() || !Virt(0xffff_8880_0000_0000).IsKernel() || !Virt(0xff11_0000_0000_0000).IsKernel() {
		t.Error("kernel addresses are not told apart")
	}
}

func TestUUID(t *testing.T) {
	const s = "01234567-89ab-cdef-0123-456789abcdef"
	u, err := ParseUUID(s)
	if err != nil || u.String() != s {
		t.Errorf("%v, %v", u, err)
	}
	for _, bad := range []string{"", "0", s + "0", "g" + s[1:]} {
		if _, err := ParseUUID(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
