package pagecache_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
)

// Offsets of the additional members in a world with a block device, in bytes.
const (
	sbBdev  = 176
	inRdev  = 44
	asHost  = 64
	bdInode = 0
)

// withDevice returns the types of a world with a block device.
func withDevice() []btf.Type {
	u32, u64 := &btf.Int{Name: "u32", Size: 4}, &btf.Int{Name: "u64", Size: 8}
	all := types()
	for _, t := range all {
		s, ok := t.(*btf.Struct)
		switch {
		case ok && s.Name == "super_block":
			s.Members = append(s.Members, field("s_bdev", sbBdev, u64))
		case ok && s.Name == "inode":
			for _, m := range s.Members {
				if m.Name == "i_data" {
					mapping := m.Type.(*btf.Struct)
					mapping.Members = append(mapping.Members, field("host", asHost, u64))
					all = append(all, mapping)
				}
			}
			s.Members = append(s.Members, field("i_rdev", inRdev, u32))
		}
	}
	return append(all, &btf.Struct{Name: "block_device", Size: 8, Members: []btf.Member{field("bd_inode", bdInode, u64)}})
}

// TestFilling checks that the blocks of locked pages that were being filled are found, and that
// those to which nothing happened are left out.
func TestFilling(t *testing.T) {
	const (
		bit                          = uint64(1)
		up, dirty, mapped, fresh     = bit << bhUptodate, bit << bhDirty, bit << bhMapped, bit << bhNew
		delay, jbd, locked, hasOwner = bit << 9, bit << 16, bit << pgLocked, bit << pgPrivateBit
		lock                         = bit << bhLock
	)
	all := []addr.Span{{Off: 0, End: 1 << 40}}
	for name, tc := range map[string]struct {
		flags  uint64 // of page 5
		states [4]uint64
		none   bool // it has no buffers
		within []addr.Span
		spoil  bool
		want   []string // from, where, filled, fresh
		bad    bool
	}{
		"given a block, and not filled": {flags: locked | hasOwner, states: [4]uint64{up | mapped, mapped | fresh, 0, up | mapped | dirty}, want: []string{"21504 101 false true", "22528 -1 false false", "23552 103 true false"}},
		"not locked":                    {flags: hasOwner, states: [4]uint64{0, mapped | fresh, 0, 0}},
		"nothing happened to it":        {flags: locked | hasOwner | 1<<pgUptodate, states: [4]uint64{up | mapped, mapped, up | mapped, mapped}},
		"filled as a whole":             {flags: locked | hasOwner | 1<<pgUptodate, states: [4]uint64{0, mapped | fresh, up | mapped, up | mapped}, want: []string{"20480 -1 true false", "21504 101 true true"}},
		"delayed":                       {flags: locked | hasOwner, states: [4]uint64{up | mapped | fresh | delay, up | mapped, up | mapped, up | mapped}, want: []string{"20480 -1 true true"}},
		"of the journal":                {flags: locked | hasOwner, states: [4]uint64{up | mapped | jbd, up | mapped, up | mapped, up | mapped}, want: []string{"20480 100 true false"}},
		"without buffers":               {flags: locked, none: true},
		"filled, without buffers":       {flags: locked | 1<<pgUptodate, none: true, want: []string{"20480 -1 true false", "21504 -1 true false", "22528 -1 true false", "23552 -1 true false"}},
		"another part of the file":      {flags: locked | hasOwner, states: [4]uint64{0, mapped | fresh, 0, 0}, within: []addr.Span{{Off: 0, End: 5 * addr.PageSize}, {Off: 6 * addr.PageSize, End: 7 * addr.PageSize}}},
		"that part of the file":         {flags: locked | hasOwner, states: [4]uint64{up | mapped, mapped | fresh, up | mapped, up | mapped}, within: []addr.Span{{Off: 0, End: 100}, {Off: 21504, End: 22528}}, want: []string{"21504 101 false true"}},
		"migrated":                      {flags: locked | hasOwner | 1<<pgDirty, states: [4]uint64{up | mapped | dirty | lock, up | mapped | lock, lock, lock}, bad: true},
		"migrated, not yet its buffers": {flags: locked | 1<<pgDirty, none: true, bad: true},
		"of another file":               {flags: locked | hasOwner, states: [4]uint64{0, mapped | fresh, 0, 0}, spoil: true, bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.PutU64(w.sb+sbBlock, 1024)
			file := w.file(9, "file", 90*addr.PageSize)
			p := w.page(file, 5, tc.flags, 'a')
			if !tc.none {
				w.buffers(p, w.data(p), tc.states)
				b := w.u64(p + pgPrivate)
				for n := range uint64(4) {
					w.PutU64(b+bhBlock, 100+n)
					b = w.u64(b + bhNext)
				}
			}
			if tc.spoil {
				w.PutU64(p+pgMapping, 8)
			}
			w.head(file, 2+w.node(file, 0, 0, 0, map[int]addr.Virt{5: p, 7: w.page(file, 7, 1<<pgUptodate, 'b')}))
			w.PutU64(file+inPages, 2)
			w.device()
			w.Finish(withDevice()...)
			c, s := w.open(t)
			dev, err := c.Device(s, nil)
			if err != nil {
				t.Fatal(err)
			}
			if tc.within == nil {
				tc.within = all
			}
			for i, err := range c.Inodes(s) {
				if err != nil {
					t.Fatal(err)
				}
				blocks, err := dev.Filling(i, tc.within)
				if (err != nil) != tc.bad {
					t.Fatalf("%v; bad: %v", err, tc.bad)
				}
				if got := told(blocks); !slices.Equal(got, tc.want) {
					t.Errorf("got %q, want %q", got, tc.want)
				}
				if blocks, err := dev.Filling(i, nil); len(blocks) > 0 || err != nil {
					t.Errorf("nothing was asked for: %v, %v", blocks, err)
				}
			}
		})
	}
}

func told(blocks []pagecache.FillingBlock) (out []string) {
	for _, b := range blocks {
		disk := b.Disk
		if disk >= 0 {
			disk /= b.Len()
		}
		out = append(out, fmt.Sprint(b.Off, disk, b.Filled, b.Fresh))
	}
	return out
}

// device gives the file system a block device of which nothing is cached, and returns its inode.
func (w *world) device() addr.Virt {
	bdev, inode := w.alloc(8), w.alloc(inBytes)
	w.PutU64(w.sb+sbBdev, uint64(bdev))
	w.PutU64(bdev+bdInode, uint64(inode))
	w.PutU64(inode+inMapping, uint64(inode+inData))
	w.PutU64(inode+inData+asHost, uint64(inode))
	return inode
}
