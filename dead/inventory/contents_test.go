package inventory

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
)

func ext(off, end int64, phys addr.Phys) Extent {
	return Extent{Span: addr.Span{Off: off, End: end}, Phys: phys}
}

func TestSubtract(t *testing.T) {
	all := []Extent{ext(0, 100, 1000), ext(100, 200, 5000), ext(300, 400, 7000)}
	for name, tc := range map[string]struct {
		taken []addr.Span
		want  []Extent
	}{
		"nothing":         {nil, all},
		"all":             {[]addr.Span{{End: 1000}}, nil},
		"one":             {[]addr.Span{{Off: 100, End: 200}}, []Extent{all[0], all[2]}},
		"within":          {[]addr.Span{{Off: 10, End: 20}}, []Extent{ext(0, 10, 1000), ext(20, 100, 1020), all[1], all[2]}},
		"across":          {[]addr.Span{{Off: 50, End: 350}}, []Extent{ext(0, 50, 1000), ext(350, 400, 7050)}},
		"several":         {[]addr.Span{{Off: 0, End: 1}, {Off: 99, End: 101}}, []Extent{ext(1, 99, 1001), ext(101, 200, 5001), all[2]}},
		"between, behind": {[]addr.Span{{Off: 200, End: 300}, {Off: 400, End: 500}}, all},
	} {
		if got := subtract(all, tc.taken); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestWithout(t *testing.T) {
	for name, tc := range map[string]struct {
		in, want []addr.Span
	}{
		"nothing":     {nil, []addr.Span{{End: 100}}},
		"all":         {[]addr.Span{{End: 200}}, nil},
		"out of turn": {[]addr.Span{{Off: 50, End: 60}, {Off: 10, End: 20}, {Off: 15, End: 30}}, []addr.Span{{End: 10}, {Off: 30, End: 50}, {Off: 60, End: 100}}},
		"behind":      {[]addr.Span{{Off: 120, End: 130}}, []addr.Span{{End: 100}}},
	} {
		if got := Without(100, tc.in); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestRefusedSpan(t *testing.T) {
	for name, tc := range map[string]struct {
		refusal pagecache.Refusal
		want    addr.Span
	}{
		"the file":    {pagecache.Refusal{}, addr.Span{End: 5000}},
		"a page":      {pagecache.Refusal{Pages: 1, Each: addr.Pages4K}, addr.Span{End: 4096}},
		"the last":    {pagecache.Refusal{Index: 1, Pages: 1, Each: addr.Pages4K}, addr.Span{Off: 4096, End: 5000}},
		"a large one": {pagecache.Refusal{Pages: 1, Each: addr.Pages16K}, addr.Span{End: 5000}},
		"wild length": {pagecache.Refusal{Index: 1, Pages: 1 << 63, Each: addr.Pages4K}, addr.Span{Off: 4096, End: 5000}},
		"wild place":  {pagecache.Refusal{Index: 1 << 63, Pages: 1 << 63, Each: addr.Pages4K}, addr.Span{Off: 8192, End: 5000}},
	} {
		if got := RefusedSpan(&tc.refusal, 5000); got != tc.want && (got.Len() > 0 || tc.want.Len() > 0) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

// gappy is memory whose every byte is the number of its page, without page 2.
type gappy struct{}

func (gappy) View(pa addr.Phys, n int) ([]byte, error) {
	b := make([]byte, n)
	for i := range b {
		page := addr.Pages4K.PFN(pa + addr.Phys(i))
		if page == 2 {
			return nil, &ram.Fault{Addr: pa + addr.Phys(i), Len: n - i}
		}
		b[i] = byte(page)
	}
	return b, nil
}
func (gappy) Ranges() []addr.PhysRange { return nil }
func (gappy) Close() error             { return nil }

func TestReadAt(t *testing.T) {
	m := &Image{mem: gappy{}}
	// Bytes 0 to 4096 from page 1, a gap, then pages 1 to 3, of which 2 is absent.
	extents := []Extent{ext(0, 4096, 0x1000), ext(8192, 20480, 0x1000)}
	const size = 20000
	zeros := func(dst []byte, off int64) error {
		if off < 4096 || off+int64(len(dst)) > 8192 {
			t.Errorf("asked to fill %d bytes at %d", len(dst), off)
		}
		clear(dst)
		return nil
	}
	one := bytes.Repeat([]byte{1}, 4096)
	for name, tc := range map[string]struct {
		off  int64
		n    int
		want []byte
		err  error
	}{
		"start":       {0, 10, one[:10], nil},
		"into gap":    {4090, 10, append(slices.Clone(one[:6]), 0, 0, 0, 0), nil},
		"gap":         {5000, 10, make([]byte, 10), nil},
		"out of gap":  {8190, 4, []byte{0, 0, 1, 1}, nil},
		"absent":      {12288, 1, nil, ErrAbsent},
		"into absent": {12280, 16, nil, ErrAbsent},
		"behind it":   {16384, 2, []byte{3, 3}, nil},
		"over end":    {19999, 10, []byte{3}, nil},
		"at end":      {20000, 10, nil, io.EOF},
	} {
		dst := bytes.Repeat([]byte{0xee}, tc.n)
		n, err := m.ReadAt(dst, tc.off, size, extents, zeros)
		if !errors.Is(err, tc.err) || err == nil && !bytes.Equal(dst[:n], tc.want) {
			t.Errorf("%s: %d bytes %v, %v", name, n, dst[:min(n, 16)], err)
		}
	}
}

// TestEach checks that the present pages around an absent one are read.
func TestEach(t *testing.T) {
	m := &Image{mem: gappy{}}
	var got, gone []addr.Span
	err := m.Each(ext(100, 100+3*4096, 0x1000-4+4), func(off int64, b []byte) error {
		got = append(got, addr.Span{Off: off, End: off + int64(len(b))})
		return nil
	}, func(s addr.Span, err error) error {
		gone = append(gone, s)
		return nil
	})
	if err != nil || !slices.Equal(got, []addr.Span{{Off: 100, End: 4196}, {Off: 8292, End: 12388}}) ||
		!slices.Equal(gone, []addr.Span{{Off: 4196, End: 8292}}) {
		t.Errorf("%v, gone %v, %v", got, gone, err)
	}
}
