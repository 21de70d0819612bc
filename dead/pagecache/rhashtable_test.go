package pagecache

import (
	"errors"
	"slices"
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

// TestHashed checks that all nodes of a hash table are found, also while it is being resized, and that no table leads around in circles.
func TestHashed(t *testing.T) {
	m := kerneltest.New(t)
	l := rhashLayout{
		table: kernel.Field{Off: 8, Size: 8}, count: kernel.Field{Off: 0, Size: 4}, nest: kernel.Field{Off: 4, Size: 4},
		after: kernel.Field{Off: 8, Size: 8}, buckets: 16,
	}
	head := m.Alloc(16)
	table := func(nest uint32, after addr.Virt, buckets ...addr.Virt) addr.Virt {
		at := m.Alloc(16 + 8*len(buckets))
		m.PutU32(at, uint32(len(buckets)))
		m.PutU32(at+4, nest)
		m.PutU64(at+8, uint64(after))
		for n, b := range buckets {
			m.PutU64(at+16+addr.Virt(8*n), uint64(b))
		}
		return at
	}
	node := func(next addr.Virt) addr.Virt {
		at := m.Alloc(8)
		m.PutU64(at, uint64(next))
		return at
	}
	end := addr.Virt(1) // a chain ends in an odd number
	third := node(end)
	second := node(third)
	first := node(second)
	moved, broken := node(0x1235), node(0x10)
	circle := node(0)
	m.PutU64(circle, uint64(circle))
	m.Finish(&btf.Struct{Name: "page", Size: kerneltest.PageStruct})
	k, err := kernel.Find(m)
	if err != nil {
		t.Fatal(err)
	}
	c := &Cache{k: k}
	for name, tc := range map[string]struct {
		table addr.Virt
		left  int
		want  []addr.Virt
		bad   bool
	}{
		"none":           {0, 100, nil, false},
		"empty":          {table(0, 0, 0, 0, 1), 100, nil, false},
		"three":          {table(0, 0, 0, first, 0), 100, []addr.Virt{first, second, third}, false},
		"a locked one":   {table(0, 0, first|1), 100, []addr.Virt{first, second, third}, false},
		"two tables":     {table(0, table(0, 0, moved), second), 100, []addr.Virt{second, third, moved}, false},
		"circular":       {table(0, 0, circle), 20, slices.Repeat([]addr.Virt{circle}, 19), true},
		"too large":      {table(0, 0, 0, 0, 0), 2, nil, true},
		"nested":         {table(1, 0, first), 100, nil, true},
		"no buckets":     {table(0, 0), 100, nil, true},
		"not in memory":  {0x10, 100, nil, true},
		"a broken chain": {table(0, 0, broken), 100, []addr.Virt{broken, 0x10}, true},
	} {
		m.PutU64(head+8, uint64(tc.table))
		var got []addr.Virt
		var err error
		for at, bad := range c.hashed(head, l, &tc.left) {
			if bad != nil {
				err = errors.Join(err, bad)
				continue
			}
			got = append(got, at)
		}
		if !slices.Equal(got, tc.want) || (err != nil) != tc.bad {
			t.Errorf("%s: %v, %v, want %v", name, got, err, tc.want)
		}
	}
	around := table(0, 0, second)
	m.PutU64(around+8, uint64(around))
	m.PutU64(head+8, uint64(around))
	left, n := 1000, 0
	var last error
	for _, err := range c.hashed(head, l, &left) {
		last = err
		n++
	}
	if last == nil || n > 20 {
		t.Errorf("a table that is being moved to itself: %d nodes, %v", n, last)
	}
}
