package salvage

import (
	"reflect"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
)

func TestDivide(t *testing.T) {
	at := func(off, end, disk int64) pagecache.Mapped {
		return pagecache.Mapped{Span: addr.Span{Off: off, End: end}, Disk: disk}
	}
	unwritten := at(0x5000, 0x6000, 0x50000)
	unwritten.Unwritten = true
	mapped := []pagecache.Mapped{at(0x1000, 0x3000, 0x70000), at(0x4000, 0x5000, pagecache.Delayed), unwritten, at(0x8000, 0x9000, 0x90000)}
	for name, tc := range map[string]struct {
		gap  addr.Span
		bad  []addr.Span
		want Metadata
	}{
		"no place":  {addr.Span{Off: 0, End: 0x1000}, nil, Metadata{Zeros: []addr.Span{{Off: 0, End: 0x1000}}}},
		"a place":   {addr.Span{Off: 0x1000, End: 0x2000}, nil, Metadata{Mapped: []pagecache.Mapped{at(0x1000, 0x2000, 0x70000)}}},
		"the rest":  {addr.Span{Off: 0x2000, End: 0x3000}, nil, Metadata{Mapped: []pagecache.Mapped{at(0x2000, 0x3000, 0x71000)}}},
		"delayed":   {addr.Span{Off: 0x4000, End: 0x5000}, nil, Metadata{Unknown: []addr.Span{{Off: 0x4000, End: 0x5000}}}},
		"unwritten": {addr.Span{Off: 0x5000, End: 0x6000}, nil, Metadata{Zeros: []addr.Span{{Off: 0x5000, End: 0x6000}}}},
		"refused": {
			addr.Span{Off: 0x1000, End: 0x3000}, []addr.Span{{Off: 0x2000, End: 0x3000}},
			Metadata{Unknown: []addr.Span{{Off: 0x1000, End: 0x3000}}},
		},
		"refused elsewhere": {
			addr.Span{Off: 0x1000, End: 0x2000}, []addr.Span{{Off: 0x2000, End: 0x3000}},
			Metadata{Mapped: []pagecache.Mapped{at(0x1000, 0x2000, 0x70000)}},
		},
		"all of it": {
			addr.Span{Off: 0, End: 0xa000}, nil,
			Metadata{
				Zeros:   []addr.Span{{Off: 0, End: 0x1000}, {Off: 0x3000, End: 0x4000}, {Off: 0x5000, End: 0x6000}, {Off: 0x6000, End: 0x8000}, {Off: 0x9000, End: 0xa000}},
				Mapped:  []pagecache.Mapped{at(0x1000, 0x3000, 0x70000), at(0x8000, 0x9000, 0x90000)},
				Unknown: []addr.Span{{Off: 0x4000, End: 0x5000}},
			},
		},
	} {
		var got Metadata
		got.divide(tc.gap, mapped, tc.bad)
		if !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}

func TestWithout(t *testing.T) {
	others := []pagecache.Piece{piece(0x1000, 0x2000, 50), piece(0x2400, 0x3000, 60)}
	for _, tc := range []struct {
		in   pagecache.Piece
		want []addr.Span
	}{
		{piece(0, 0x1000, 1), []addr.Span{{Off: 0, End: 0x1000}}},
		{piece(0x1000, 0x2000, 1), nil},
		{piece(0, 0x4000, 1), []addr.Span{{Off: 0, End: 0x1000}, {Off: 0x2000, End: 0x2400}, {Off: 0x3000, End: 0x4000}}},
		{piece(0x2000, 0x3000, 1), []addr.Span{{Off: 0x2000, End: 0x2400}}},
		{piece(0x5000, 0x6000, 1), []addr.Span{{Off: 0x5000, End: 0x6000}}},
	} {
		got := without(tc.in, others)
		var spans []addr.Span
		for _, p := range got {
			spans = append(spans, p.Span)
			if p.Phys-tc.in.Phys != addr.Phys(p.Off-tc.in.Off) {
				t.Errorf("%v of %v is at %v", p.Span, tc.in.Span, p.Phys)
			}
		}
		if !reflect.DeepEqual(spans, tc.want) {
			t.Errorf("%v leaves %v, want %v", tc.in.Span, spans, tc.want)
		}
	}
}

// FuzzSupers checks that, whatever a disk begins with, its superblock is read or
// refused, and that what is read is plausible.
func FuzzSupers(f *testing.F) {
	xfs := make([]byte, xfsSuperSize)
	copy(xfs, "XFSB\x00\x00\x10\x00")
	xfs[120], xfs[124], xfs[87], xfs[55], xfs[99] = 12, 16, 100, 4, 10
	f.Add(xfs)
	btrfs := make([]byte, pagecache.BtrfsSuperSize)
	copy(btrfs[64:], "_BHRfS_M")
	f.Add(btrfs)
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseXFSSuper(b); err == nil && (s.logStart < 0 || s.logSize < 0 || s.logStart+s.logSize < s.logStart) {
			t.Errorf("log of %d bytes at %d", s.logSize, s.logStart)
		}
		_, _ = parseBtrfsSuper(b)
		_, _ = pagecache.ParseLogRecord(b)
	})
}
