package ram

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/internal/lab/ramtest"
)

// TestCache checks that what is in the cache is what was put in, that it stays within its bounds,
// and that what is asked for often stays.
func TestCache(t *testing.T) {
	const limit, block = 64 << 10, 256
	c := newCache(limit)
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(worker), 1))
			for range 20000 {
				key := rng.Int64N(2000)
				if b, ok := c.get(key); !ok {
					c.put(key, bytes.Repeat([]byte{byte(key)}, block))
				} else if len(b) != block || b[0] != byte(key) || b[block-1] != byte(key) {
					t.Errorf("block %d holds %d", key, b[0])
				}
			}
		})
	}
	wg.Wait()
	total := 0
	for i := range c.shards {
		for _, generation := range []map[int64][]byte{c.shards[i].young, c.shards[i].old} {
			total += len(generation) * block
		}
	}
	if total > limit || total < limit/4 {
		t.Errorf("%d bytes are kept, of at most %d", total, limit)
	}
	c.put(-1, []byte("often"))
	for key := range int64(100_000) {
		c.put(key, make([]byte, block))
		if key%8 == 0 {
			if _, ok := c.get(-1); !ok {
				t.Fatalf("forgotten after %d others", key)
			}
		}
	}
	c.put(-2, make([]byte, limit))
	if _, ok := c.get(-2); ok {
		t.Error("a block that is too large was kept")
	}
}

// TestEviction reads memory through a cache that holds almost none of it.
func TestEviction(t *testing.T) {
	for _, format := range []ramtest.Format{ramtest.AVML{Compress: true}, ramtest.Kdump{Codec: ramtest.Zstd}} {
		m, err := openInput(inputOf(dumpBytes(t, format)))
		if err != nil {
			t.Fatal(err)
		}
		m.(*paged).cache = newCache(2 * cacheShards * addr.PageSize)
		var wg sync.WaitGroup
		for worker := range 4 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(worker), 2))
				for range 500 {
					off := rng.IntN(2*addr.PageSize - 100)
					b, err := m.View(addr.Phys(0x8000+off), 100)
					if err != nil || !bytes.Equal(b, tinyMemory[1][off:off+100]) {
						t.Errorf("offset %#x: %v", off, err)
					}
				}
			})
		}
		wg.Wait()
	}
}

// TestGap checks that what no record of a flattened file wrote is not zero, but an error.
func TestGap(t *testing.T) {
	f := &flat{in: inputOf([]byte("abcdef")), records: []flatRecord{{start: 10, end: 13, at: 0}, {start: 14, end: 17, at: 3}}}
	var b [4]byte
	if n, err := f.ReadAt(b[:], 11); n != 2 || !errors.Is(err, errGap) || string(b[:n]) != "bc" {
		t.Errorf("%d bytes, %v", n, err)
	}
	if n, err := f.ReadAt(b[:3], 14); n != 3 || err != nil || string(b[:n]) != "def" {
		t.Errorf("%d bytes, %v", n, err)
	}
}

// TestLayOut checks that of pieces for the same memory the one that starts first counts.
func TestLayOut(t *testing.T) {
	piece := func(start, end addr.Phys, off int64) extent {
		return extent{phys: addr.PhysRange{Start: start, End: end}, off: off}
	}
	got := layOut([]extent{
		piece(0x5000, 0x6000, 0x100), piece(0, 0x3000, 0x9000), piece(0x1000, 0x2000, 0x20000), piece(0x2000, 0x5000, 0x30000),
		piece(0x6000, 0x6000, 0), piece(0x6000, 0x7000, 0x1100),
	})
	want := extents{piece(0, 0x3000, 0x9000), piece(0x3000, 0x5000, 0x31000), piece(0x5000, 0x7000, 0x100)}
	if len(got) != len(want) {
		t.Fatalf("%v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%v, want %v", got[i], want[i])
		}
	}
}

func TestAdvice(t *testing.T) {
	for _, tc := range []struct {
		info Info
		want string // "" means none
	}{
		{Info{}, ""},
		{Info{Level: 17, LevelKnown: true, Excluded: 1 << 30}, ""},
		{Info{Level: 25, LevelKnown: true, Excluded: 1 << 30}, ""},
		{Info{Level: 31, LevelKnown: true}, "page cache was excluded at dump time (dump level 31): dump again with -d 17 or 25, not -d 31 (bits 2 and 4 throw it away)"},
		{Info{Level: 2, LevelKnown: true}, "dump level 2"},
		{Info{Level: 4, LevelKnown: true}, "dump level 4"},
		{Info{Level: 17, LevelKnown: true, Incomplete: true}, "ran out of space"},
		{Info{Excluded: 3 << 20}, "3 MiB were left out"},
	} {
		if got := tc.info.Advice(); !strings.Contains(got, tc.want) || tc.want == "" && got != "" {
			t.Errorf("%+v: %q", tc.info, got)
		}
	}
}
