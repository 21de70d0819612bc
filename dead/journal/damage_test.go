package journal_test

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/dead/ram"
)

// recorder remembers which memory was read, except for whole blocks: their
// content has its own checksums.
type recorder struct {
	ram.Memory
	block  int
	mu     sync.Mutex
	looks  []addr.PhysRange
	blocks map[*byte]addr.Phys // by the address of the first byte of a view of it
}

func (r *recorder) View(pa addr.Phys, n int) ([]byte, error) {
	b, err := r.Memory.View(pa, n)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil && n == r.block:
		if r.blocks == nil {
			r.blocks = make(map[*byte]addr.Phys)
		}
		r.blocks[&b[0]] = pa
	case n < addr.PageSize:
		r.looks = append(r.looks, addr.PhysRange{Start: pa, End: pa + addr.Phys(n)})
	}
	return b, err
}

// seen is what can be damaged.
type seen struct {
	looks  []addr.PhysRange // structures of the kernel that were read, in order
	blocks []seenBlock      // of open transactions
	size   int              // of a block
}

// seenBlock is a block of metadata in memory.
type seenBlock struct {
	at  addr.Phys
	old []byte // its content on the disk after a recovery
}

// look returns a random one of the looks.
func (s *seen) look(rng *rand.Rand) addr.PhysRange { return s.looks[rng.IntN(len(s.looks))] }

// word returns the address of a random aligned word of 8 bytes that was read.
func (s *seen) word(rng *rand.Rand) addr.Phys {
	for {
		r := s.look(rng)
		if at := (r.Start + addr.Phys(rng.Uint64N(r.Len()))) &^ 7; at >= r.Start && at+8 <= r.End {
			return at
		}
	}
}

func (s *seen) anyBlock(rng *rand.Rand) seenBlock { return s.blocks[rng.IntN(len(s.blocks))] }

// seen returns what was recorded, and of the blocks those that belong to a journal's open
// transactions. before is the disk as a recovery leaves it.
func (r *recorder) seen(t *testing.T, j *journal.Journal, before io.ReaderAt) *seen {
	t.Helper()
	s := &seen{looks: slices.Clone(r.looks), size: r.block}
	slices.SortFunc(s.looks, func(a, b addr.PhysRange) int { return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.End, b.End)) })
	for _, open := range []*journal.Transaction{j.Committing, j.Running} {
		if open == nil {
			continue
		}
		for _, b := range open.Buffers {
			at, ok := r.blocks[&b.Data[0]]
			if !ok {
				t.Fatalf("block %d was not looked at", b.Block)
			}
			old := make([]byte, r.block)
			if _, err := before.ReadAt(old, int64(b.Block)*int64(r.block)); err != nil {
				t.Fatal(err)
			}
			s.blocks = append(s.blocks, seenBlock{at, old})
		}
	}
	slices.SortFunc(s.blocks, func(a, b seenBlock) int { return cmp.Compare(a.at, b.at) })
	if len(s.looks) == 0 || len(s.blocks) == 0 {
		t.Fatalf("%d looks, %d blocks: there is nothing to be damaged", len(s.looks), len(s.blocks))
	}
	return s
}

// damaged is memory in which some pages are replaced.
type damaged struct {
	ram.Memory
	pages map[addr.Phys][]byte // by the address of their first byte
}

func (d *damaged) View(pa addr.Phys, n int) ([]byte, error) {
	b, err := d.Memory.View(pa, n)
	if err != nil || n == 0 {
		return b, err
	}
	out := b
	for at, page := range d.pages {
		if at >= pa+addr.Phys(n) || at+addr.PageSize <= pa {
			continue
		}
		if &out[0] == &b[0] {
			out = bytes.Clone(b)
		}
		if at >= pa {
			copy(out[at-pa:], page)
		} else {
			copy(out, page[pa-at:])
		}
	}
	return out, nil
}

// view returns memory that can be read.
func (d *damaged) view(at addr.Phys, n int) []byte {
	b, err := d.View(at, n)
	if err != nil {
		panic(err) // it was read before
	}
	return b
}

// put changes bytes.
func (d *damaged) put(at addr.Phys, data []byte) {
	for len(data) > 0 {
		page := at &^ (addr.PageSize - 1)
		b := d.pages[page]
		if b == nil {
			b = bytes.Clone(d.view(page, addr.PageSize))
			d.pages[page] = b
		}
		n := copy(b[at-page:], data)
		at, data = at+addr.Phys(n), data[n:]
	}
}

// swap exchanges two pieces of memory.
func (d *damaged) swap(a, b addr.Phys, n int) {
	was := bytes.Clone(d.view(a, n))
	d.put(a, bytes.Clone(d.view(b, n)))
	d.put(b, was)
}

// differences says how many bytes differ, and lists the first eight of them.
func (d *damaged) differences() string {
	var out strings.Builder
	n := 0
	for _, page := range slices.Sorted(maps.Keys(d.pages)) {
		was, err := d.Memory.View(page, addr.PageSize)
		for i, b := range d.pages[page] {
			if err != nil || b == was[i] {
				continue
			}
			if n++; n <= 8 {
				fmt.Fprintf(&out, "%#x is %#x instead of %#x, ", uint64(page)+uint64(i), b, was[i])
			}
		}
	}
	fmt.Fprintf(&out, "%d bytes", n)
	return out.String()
}

// bytesOf damages between one and most bytes of what was read.
func bytesOf(most int) func(*damaged, *rand.Rand, *seen) {
	return func(d *damaged, rng *rand.Rand, s *seen) {
		for range 1 + rng.IntN(most) {
			r := s.look(rng)
			d.put(r.Start+addr.Phys(rng.Uint64N(r.Len())), []byte{byte(rng.Uint32())})
		}
	}
}

// damages are the kinds of damage. Damage to a page also hits whatever else lies in it.
var damages = []struct {
	name string
	do   func(*damaged, *rand.Rand, *seen)
}{
	{"bytes", bytesOf(4)},
	{"many bytes", bytesOf(40)},
	{"a bit", func(d *damaged, rng *rand.Rand, s *seen) {
		r := s.look(rng)
		at := r.Start + addr.Phys(rng.Uint64N(r.Len()))
		d.put(at, []byte{d.view(at, 1)[0] ^ 1<<rng.IntN(8)})
	}},
	{"words swapped", func(d *damaged, rng *rand.Rand, s *seen) { d.swap(s.word(rng), s.word(rng), 8) }},
	{"a word repeated", func(d *damaged, rng *rand.Rand, s *seen) { d.put(s.word(rng), bytes.Clone(d.view(s.word(rng), 8))) }},
	{"a word nearby", func(d *damaged, rng *rand.Rand, s *seen) { // of the same list, or of the next structure of a slab
		at := rng.IntN(len(s.looks))
		near := s.looks[min(at+1+rng.IntN(8), len(s.looks)-1)]
		n := int(min(s.looks[at].Len(), near.Len())) &^ 7
		if n == 0 {
			return
		}
		off := addr.Phys(rng.IntN(n)) &^ 7
		d.put(s.looks[at].Start+off, bytes.Clone(d.view(near.Start+off, 8)))
	}},
	{"a page of zeros", func(d *damaged, rng *rand.Rand, s *seen) {
		d.put(s.look(rng).Start&^(addr.PageSize-1), make([]byte, addr.PageSize))
	}},
	{"a page repeated", func(d *damaged, rng *rand.Rand, s *seen) {
		from, to := s.look(rng).Start&^(addr.PageSize-1), s.look(rng).Start&^(addr.PageSize-1)
		d.put(to, bytes.Clone(d.view(from, addr.PageSize)))
	}},
	{"a bit of metadata", func(d *damaged, rng *rand.Rand, s *seen) {
		at := s.anyBlock(rng).at + addr.Phys(rng.IntN(s.size))
		d.put(at, []byte{d.view(at, 1)[0] ^ 1<<rng.IntN(8)})
	}},
	{"metadata swapped", func(d *damaged, rng *rand.Rand, s *seen) { d.swap(s.anyBlock(rng).at, s.anyBlock(rng).at, s.size) }},
	{"metadata of zeros", func(d *damaged, rng *rand.Rand, s *seen) { d.put(s.anyBlock(rng).at, make([]byte, s.size)) }},
	{"metadata of the past", func(d *damaged, rng *rand.Rand, s *seen) {
		for range 1 + rng.IntN(2) {
			b := s.anyBlock(rng)
			d.put(b.at, b.old)
		}
	}},
}
