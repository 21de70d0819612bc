package journal

import (
	"bytes"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
)

// TestDivide checks that every block of a file is either mapped as before, or written again from
// what is known of it. Blocks have 4 KiB, and the file is ten blocks long, less a byte.
func TestDivide(t *testing.T) {
	const block = 4096
	run := func(logical uint32, physical addr.Block, n uint32) ext4.Run {
		return ext4.Run{Logical: logical, Physical: physical, Length: n}
	}
	unwritten := func(r ext4.Run) ext4.Run { r.Unwritten = true; return r }
	runs := func(r ...ext4.Run) []ext4.Run { return r }
	spans := func(blocks ...int64) (out []addr.Span) {
		for i := 0; i < len(blocks); i += 2 {
			out = append(out, addr.Span{Off: blocks[i] * block, End: blocks[i+1] * block})
		}
		return out
	}
	whole := runs(run(0, 100, 10))
	const all = 10*block - 1
	for _, tc := range []struct {
		name          string
		dir           bool
		old, new      []ext4.Run
		zeroed        bool // the disk has only zeros
		unread        bool // there are pages that cannot be read
		none          bool // neither tree is sound
		complete      bool
		has, zeros    []addr.Span
		want          int64 // the first byte that may be lost
		filled, holes []addr.Span
	}{
		{name: "as it lay", old: whole, new: whole, want: all},
		{name: "as it lay, and held", old: whole, new: whole, has: spans(0, 10), want: all},
		{name: "as it lay, split", old: whole, new: runs(run(0, 100, 3), run(3, 103, 7)), want: all},
		{name: "as it lay, and beyond", old: whole, new: runs(run(0, 100, 12)), want: all},
		{name: "half a split", old: whole, new: runs(run(0, 100, 3)), want: 3 * block},
		{name: "half a split, the rest is held", old: whole, new: runs(run(0, 100, 3)), has: spans(0, 10), want: all, filled: spans(3, 10)},
		{name: "half a split, a part of the rest is held", old: whole, new: runs(run(0, 100, 3)), has: spans(3, 7), want: 7 * block, filled: spans(3, 7)},
		{
			name: "half a split, the rest is held but for a hole", old: whole, new: runs(run(0, 100, 3)), has: spans(3, 5, 8, 10), zeros: spans(5, 8),
			want: all, filled: spans(3, 5, 8, 10), holes: spans(5, 8),
		},
		{
			name: "a page in a hole", old: whole, new: runs(run(0, 100, 3)), has: spans(5, 6), zeros: spans(2, 12),
			want: all, filled: spans(5, 6), holes: spans(3, 5, 6, 12),
		},
		{
			name: "lost in the middle", old: runs(run(0, 100, 2), run(8, 300, 2)), new: runs(run(8, 300, 2)), has: spans(1, 2), zeros: spans(5, 6),
			want: 0, filled: spans(1, 2), holes: spans(5, 6),
		},
		{name: "elsewhere", old: whole, new: runs(run(0, 200, 10))},
		{name: "shifted in its place", old: whole, new: runs(run(0, 101, 10))},
		{name: "begins later", old: whole, new: runs(run(1, 101, 9))},
		{name: "begins later, the first is held", old: whole, new: runs(run(1, 101, 9)), has: spans(0, 1), want: all, filled: spans(0, 1)},
		{name: "written before, unwritten now", old: whole, new: runs(unwritten(run(0, 100, 10)))},
		{name: "unwritten before, written now", old: runs(unwritten(run(0, 100, 10))), new: whole},
		{name: "unwritten", old: runs(unwritten(run(0, 100, 10))), new: runs(unwritten(run(0, 100, 10))), want: all},
		{name: "written before, unwritten now, and there is no more", complete: true, old: whole, new: runs(unwritten(run(0, 100, 10)))},
		{name: "unwritten before, written now, zeroed", zeroed: true, old: runs(unwritten(run(0, 100, 10))), new: whole, want: all},
		{
			name: "unwritten before, written now, zeroed but for what is held", zeroed: true, old: runs(unwritten(run(0, 100, 10))), new: whole, has: spans(4, 10),
			want: all, filled: spans(4, 10),
		},
		{name: "unwritten before, written elsewhere now", zeroed: true, old: runs(unwritten(run(0, 100, 10))), new: runs(run(0, 200, 10))},
		{name: "unwritten before, written now, zeroed, and a page is damaged", zeroed: true, unread: true, old: runs(unwritten(run(0, 100, 10))), new: whole},
		{name: "nowhere before, written now", zeroed: true, complete: true, new: whole},
		{name: "nowhere before, unwritten now", new: runs(unwritten(run(0, 100, 10)))},
		{
			name: "nowhere before, unwritten now, and there is no more", complete: true, new: runs(unwritten(run(2, 100, 4)), run(6, 200, 4)), has: spans(3, 4, 6, 10),
			want: all, filled: spans(3, 4, 6, 10),
		},
		{
			name: "a part nowhere before, unwritten now", complete: true, old: runs(run(0, 90, 2), run(4, 300, 2)), new: runs(unwritten(run(0, 100, 10))),
		},
		{name: "unwritten elsewhere before", complete: true, old: runs(unwritten(run(0, 50, 10))), new: runs(unwritten(run(0, 100, 10))), want: all},
		{name: "nowhere, then and now"},
		{name: "nowhere, which the kernel knew", zeros: spans(0, 12), want: all, holes: spans(0, 12)},
		{name: "nowhere, and there is no more", complete: true, want: all},
		{name: "holes, and there is no more", complete: true, old: runs(run(2, 100, 3)), new: runs(run(2, 100, 3), run(8, 200, 1)), has: spans(8, 9), want: all, filled: spans(8, 9)},
		{name: "a hole that was none, and there is no more", complete: true, old: whole, new: runs(run(0, 100, 3)), want: 3 * block},
		{name: "holes, and there is more", old: runs(run(2, 100, 3)), new: runs(run(2, 100, 3))},
		{name: "contradictory", none: true},
		{name: "contradictory, all is held", none: true, has: spans(0, 10), want: all, filled: spans(0, 10)},
		{name: "contradictory, the end is not held", none: true, has: spans(0, 9), want: 9 * block, filled: spans(0, 9)},
		{name: "held beyond its end", none: true, has: spans(0, 20), want: all, filled: spans(0, 20)},
		{name: "a directory that grew", dir: true, old: runs(run(0, 100, 4)), new: runs(run(0, 100, 4), run(4, 300, 6)), want: all},
		{name: "a directory with a hole", dir: true, old: whole, new: runs(run(0, 100, 4), run(5, 105, 5)), want: 4 * block},
		{name: "a directory that is unwritten", dir: true, old: whole, new: runs(unwritten(run(0, 100, 10)))},
		{name: "a directory that contradicts itself", dir: true, none: true},
	} {
		p := fileMap{size: all, block: block, dir: tc.dir, filled: tc.has, zeros: tc.zeros, complete: tc.complete, unread: tc.unread, zeroed: func(addr.Block) bool { return tc.zeroed }}
		if !tc.none {
			p.trees = &audit.Trees{Old: tc.old, New: tc.new}
		}
		for i, h := range tc.holes {
			tc.holes[i] = h.Clip(all)
		}
		var m AfterMount
		if got := p.divide(&m); got != tc.want || !slices.Equal(m.Filled, tc.filled) || !slices.Equal(m.Holes, tc.holes) {
			t.Errorf("%s: %d instead of %d: %v, %v", tc.name, got, tc.want, m.Filled, m.Holes)
		}
	}
}

// TestComplete: of extents, some may be missing while the kernel moves them, unless their blocks add up; of indirect blocks, none is.
func TestComplete(t *testing.T) {
	for _, tc := range []struct {
		trees *audit.Trees
		want  bool
	}{
		{nil, false}, {&audit.Trees{Blocks: 14}, false}, {&audit.Trees{Blocks: 15}, true}, {&audit.Trees{Blocks: 14, Indirect: true}, true},
	} {
		if got := complete(tc.trees, 4096, 15*8); got != tc.want {
			t.Errorf("%+v: %v", tc.trees, got)
		}
	}
}

// TestRevoked checks that a revoked block is as it is on the disk, whatever an earlier replay of
// the log made of it, and that a block which is revoked and written is as it is written.
func TestRevoked(t *testing.T) {
	const size = 1024
	blocks := func(letters string) []byte {
		var b []byte
		for _, l := range letters {
			b = append(b, bytes.Repeat([]byte{byte(l)}, size)...)
		}
		return b
	}
	disk, old := blocks("abcde"), blocks("aBCdE")
	txn := &jbd2.Transaction{Blocks: []jbd2.Block{{Home: 2, Data: blocks("x")}, {Home: 3, Data: blocks("y")}}, Revokes: []addr.Block{0, 1, 2}}
	got, err := changedBlocks(txn, bytes.NewReader(disk), bytes.NewReader(old), size)
	if err != nil {
		t.Fatal(err)
	}
	want := map[addr.Block]string{1: "b", 2: "x", 3: "y"}
	for b, letter := range want {
		if !bytes.Equal(got[b], blocks(letter)) {
			t.Errorf("block %d is %.1q", b, got[b])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d blocks are changed", len(got))
	}
	txn.Revokes = []addr.Block{5}
	if _, err := changedBlocks(txn, bytes.NewReader(disk), bytes.NewReader(old), size); err == nil {
		t.Error("a block beyond the end is revoked")
	}
}
