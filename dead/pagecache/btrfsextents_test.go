package pagecache

import (
	"encoding/binary"
	"math"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
)

// btrfsExtentOf makes an item of an extent that is not inline.
func btrfsExtentOf(kind byte, disk, offset, length uint64) []byte {
	b := make([]byte, btrfsExtentSize)
	b[20] = kind
	for at, v := range map[int]uint64{0: 7, 8: length, 21: disk, 29: offset + length, 37: offset, 45: length} {
		binary.LittleEndian.PutUint64(b[at:], v)
	}
	return b
}

// inlineOf makes an item with its content.
func inlineOf(content string) []byte {
	b := append(make([]byte, btrfsExtentHeader), content...)
	binary.LittleEndian.PutUint64(b[8:], uint64(len(content)))
	return b
}

// set changes a byte of a copy.
func set(b []byte, at int, value byte) []byte {
	b = slices.Clone(b)
	b[at] = value
	return b
}

func TestParseBtrfsExtent(t *testing.T) {
	const at, length, block = 8 << 10, 16 << 10, 4 << 10
	span := addr.Span{Off: at, End: at + length}
	regular := btrfsExtentOf(btrfsRegular, 1<<20, 4096, length)
	for name, tc := range map[string]struct {
		b     []byte
		want  Mapped
		plain bool
		bad   bool
	}{
		"regular":       {b: regular, want: Mapped{Span: span, Disk: 1<<20 + 4096}, plain: true},
		"preallocated":  {b: btrfsExtentOf(btrfsPrealloc, 1<<20, 0, length), want: Mapped{Span: span, Disk: 1 << 20, Unwritten: true}, plain: true},
		"hole":          {b: btrfsExtentOf(btrfsRegular, 0, 0, length), want: Mapped{Span: addr.Span{Off: at, End: at}, Disk: Delayed}, plain: true},
		"compressed":    {b: set(regular, 16, 3), want: Mapped{Span: span, Disk: Delayed}},
		"encrypted":     {b: set(regular, 17, 1), want: Mapped{Span: span, Disk: Delayed}},
		"encoded":       {b: set(regular, 19, 1), want: Mapped{Span: span, Disk: Delayed}},
		"inline":        {b: inlineOf("content"), want: Mapped{Span: addr.Span{Off: at, End: at + block}, Disk: Delayed}, plain: true},
		"inline, short": {b: inlineOf("content")[:25], want: Mapped{Span: addr.Span{Off: at, End: at + block}, Disk: Delayed}},
		"inline, compressed": {
			b: set(inlineOf("content"), 16, 1), want: Mapped{Span: addr.Span{Off: at, End: at + block}, Disk: Delayed},
		},
		"another type":    {b: set(regular, 20, 3), bad: true},
		"short":           {b: regular[:btrfsExtentSize-1], bad: true},
		"long":            {b: append(slices.Clone(regular), 0), bad: true},
		"no header":       {b: regular[:btrfsExtentHeader-1], bad: true},
		"no bytes":        {b: btrfsExtentOf(btrfsRegular, 1<<20, 0, 0), bad: true},
		"too many bytes":  {b: btrfsExtentOf(btrfsRegular, 1<<20, 0, math.MaxInt64), bad: true},
		"on no disk":      {b: btrfsExtentOf(btrfsRegular, 1<<63, 0, length), bad: true},
		"behind any disk": {b: btrfsExtentOf(btrfsRegular, 1<<20, 1<<63, length), bad: true},
	} {
		got, plain, err := parseBtrfsExtent(at, block, tc.b)
		if (err != nil) != tc.bad || err == nil && (got != tc.want || plain != tc.plain) {
			t.Errorf("%s: %+v, plain %v, %v", name, got, plain, err)
		}
	}
	if got, _, _ := parseBtrfsExtent(0, 0, inlineOf("content")); got.End != MaxBlock {
		t.Errorf("a block of unknown size ends at %d", got.End)
	}
	if _, _, err := parseBtrfsExtent(1<<63, block, regular); err == nil {
		t.Error("an extent at 1 << 63 of a file is none")
	}
}

func TestBtrfsPosition(t *testing.T) {
	w := &btrfsMap{ino: 300}
	for _, tc := range []struct {
		key  btrfsKey
		want int64
	}{
		{btrfsKey{299, btrfsExtentKey, 8192}, 0},
		{btrfsKey{300, btrfsInodeItemKey, 0}, 0},
		{btrfsKey{300, btrfsExtentKey, 0}, 0},
		{btrfsKey{300, btrfsExtentKey, 8192}, 8192},
		{btrfsKey{300, btrfsExtentKey, 1 << 63}, math.MaxInt64},
		{btrfsKey{300, btrfsExtentKey + 1, 0}, math.MaxInt64},
		{btrfsKey{301, btrfsInodeItemKey, 0}, math.MaxInt64},
	} {
		if got := w.position(tc.key); got != tc.want {
			t.Errorf("%v: %d, want %d", tc.key, got, tc.want)
		}
	}
}

// extentLeaf makes a leaf with extents of a file, and of the files before and after it.
func extentLeaf(ino addr.Ino, items map[uint64][]byte) []byte {
	b := make([]byte, 4<<10)
	end, count := len(b)-btrfsHeaderSize, 0
	add := func(ino addr.Ino, kind byte, off uint64, data []byte) {
		end -= len(data)
		item := b[btrfsHeaderSize+count*btrfsItemSize:]
		binary.LittleEndian.PutUint64(item, uint64(ino))
		item[8] = kind
		binary.LittleEndian.PutUint64(item[9:], off)
		binary.LittleEndian.PutUint32(item[17:], uint32(end))
		binary.LittleEndian.PutUint32(item[21:], uint32(len(data)))
		copy(b[btrfsHeaderSize+end:], data)
		count++
	}
	other := btrfsExtentOf(btrfsRegular, 5<<20, 0, 4096)
	add(ino-1, btrfsExtentKey, 0, other)
	add(ino, btrfsInodeItemKey, 0, make([]byte, btrfsInodeItemSize))
	var offsets []uint64
	for off := range items {
		offsets = append(offsets, off)
	}
	slices.Sort(offsets)
	for _, off := range offsets {
		add(ino, btrfsExtentKey, off, items[off])
	}
	add(ino+1, btrfsExtentKey, 0, other)
	binary.LittleEndian.PutUint32(b[96:], uint32(count))
	return b
}

func TestBtrfsLeaf(t *testing.T) {
	leaf := extentLeaf(300, map[uint64][]byte{
		0: btrfsExtentOf(btrfsRegular, 1<<20, 0, 4096), 8192: btrfsExtentOf(btrfsRegular, 0, 0, 4096), 12288: btrfsExtentOf(btrfsPrealloc, 2<<20, 0, 8192),
	})
	w := &btrfsMap{ino: 300}
	if err := w.leaf(1<<30, leaf); err != nil {
		t.Fatal(err)
	}
	want := []Mapped{{Span: addr.Span{End: 4096}, Disk: 1 << 20}, {Span: addr.Span{Off: 12288, End: 20480}, Disk: 2 << 20, Unwritten: true}}
	if !slices.Equal(w.out, want) || w.inline != nil {
		t.Errorf("got %+v, and inline %q", w.out, w.inline)
	}
	leaf = extentLeaf(300, map[uint64][]byte{0: inlineOf("content")})
	w = &btrfsMap{ino: 300}
	if err := w.leaf(1<<30, leaf); err != nil {
		t.Fatal(err)
	}
	at := int(w.inlineAt - 1<<30)
	if string(w.inline) != "content" || string(leaf[at:at+7]) != "content" || len(w.out) != 1 || w.out[0].Disk != Delayed {
		t.Errorf("inline %q at %d, %+v", w.inline, at, w.out)
	}
	for name, items := range map[string]map[uint64][]byte{
		"overlapping": {0: btrfsExtentOf(btrfsRegular, 1<<20, 0, 8192), 4096: btrfsExtentOf(btrfsRegular, 2<<20, 0, 4096)},
		"damaged":     {0: btrfsExtentOf(9, 1<<20, 0, 8192)},
	} {
		if err := (&btrfsMap{ino: 300}).leaf(0, extentLeaf(300, items)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	for _, change := range []int{17, 21} { // offset and size of the file's extent
		b := slices.Clone(leaf)
		binary.LittleEndian.PutUint32(b[btrfsHeaderSize+2*btrfsItemSize+change:], 1<<31)
		if err := (&btrfsMap{ino: 300}).leaf(0, b); err == nil {
			t.Error("an item behind the end of its block: no error")
		}
	}
}

func TestReplaced(t *testing.T) {
	span := func(off, end int64) addr.Span { return addr.Span{Off: off, End: end} }
	at := func(off, end, disk int64) Mapped { return Mapped{Span: span(off, end), Disk: disk} }
	late := func(off, end int64) Mapped { return at(off, end, Delayed) }
	was := []Mapped{at(0, 10, 1000), at(20, 30, 2000), {Span: span(30, 40), Disk: 3000, Unwritten: true}, late(50, 60)}
	for _, tc := range []struct {
		stretches []addr.Span
		want      []Mapped
	}{
		{nil, was},
		{[]addr.Span{span(0, 100)}, []Mapped{late(0, 100)}},
		{[]addr.Span{span(12, 18)}, []Mapped{was[0], late(12, 18), was[1], was[2], was[3]}},
		{[]addr.Span{span(2, 4), span(6, 8)}, []Mapped{at(0, 2, 1000), late(2, 4), at(4, 6, 1004), late(6, 8), at(8, 10, 1008), was[1], was[2], was[3]}},
		{[]addr.Span{span(5, 25), span(35, 55)}, []Mapped{
			at(0, 5, 1000), late(5, 25), at(25, 30, 2005), {Span: span(30, 35), Disk: 3000, Unwritten: true}, late(35, 55), late(55, 60),
		}},
		{[]addr.Span{span(70, 80)}, append(slices.Clone(was), late(70, 80))},
	} {
		if got := replaced(was, tc.stretches); !slices.Equal(got, tc.want) {
			t.Errorf("%v: %+v, want %+v", tc.stretches, got, tc.want)
		}
	}
}
