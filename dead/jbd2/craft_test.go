package jbd2_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
)

// crafted is a log made by hand, on top of two transactions of ours, 2 and 3.
type crafted struct {
	name  string
	kind  string
	craft func(t testing.TB, c *crafter)

	transactions int    // transactions that a recovery finds
	partial      bool   // a recovery finds a part of another after them
	fails        string // why a recovery fails instead
	stricter     bool   // we refuse what the kernel does not
	looser       bool   // we accept what some kernels refuse
	endless      bool   // the kernel loops for ever
	since510     bool   // not on 5.10, where the log ends after the fast commits when it is recovered, and before them when it is written
	fast         int    // tags of fast commits
	fastFails    string
}

// crafter has what is needed to make a log.
type crafter struct {
	*maker
	l    *jbd2.Log
	d    *jbd2.Recording
	next jbd2.Start
	txns []*jbd2.Transaction // those in the log
}

// write writes blocks into the log, from a position on.
func (c *crafter) write(t testing.TB, at jbd2.Pos, blocks [][]byte) {
	t.Helper()
	for i, b := range blocks {
		if err := c.l.WriteJournal(wrap(c.l, at, i), b); err != nil {
			t.Fatal(err)
		}
	}
}

// encode makes the blocks of a transaction that is committed some time after the last one.
func (c *crafter) encode(txn *jbd2.Transaction, after time.Duration) [][]byte {
	txn.Time = c.txns[len(c.txns)-1].Time.Add(after)
	blocks := c.l.Encode(c.next, txn)
	for i := range blocks {
		blocks[i] = slices.Clone(blocks[i])
	}
	return blocks
}

// edit changes a block of the log.
func (c *crafter) edit(t testing.TB, at jbd2.Pos, edit func([]byte)) {
	t.Helper()
	b, err := c.l.ReadJournal(at)
	if err != nil {
		t.Fatal(err)
	}
	edit(b)
	if err := c.l.WriteJournal(at, b); err != nil {
		t.Fatal(err)
	}
}

// move makes the log begin elsewhere.
func (c *crafter) move(t testing.TB, to jbd2.Pos) {
	t.Helper()
	for i := range 10 {
		b, err := c.l.ReadJournal(11 + jbd2.Pos(i))
		if err != nil {
			t.Fatal(err)
		}
		c.write(t, wrap(c.l, to, i), [][]byte{b})
	}
	if err := jbd2.EditSuper(c.d, func(b []byte) { binary.BigEndian.PutUint32(b[0x1c:], uint32(to)) }); err != nil {
		t.Fatal(err)
	}
	c.next.Block = wrap(c.l, to, 10)
}

// tag makes a tag of a fast commit.
func tag(kind uint16, value ...byte) []byte {
	b := binary.LittleEndian.AppendUint16(nil, kind)
	return append(binary.LittleEndian.AppendUint16(b, uint16(len(value))), value...)
}

// fastCommit makes a fast commit of one block: head, a change, tail.
func (c *crafter) fastCommit(tid jbd2.TID, first bool) []byte {
	size := int(c.l.Super.BlockSize)
	var b []byte
	if first {
		b = tag(9, binary.LittleEndian.AppendUint32(make([]byte, 4), uint32(tid))...)
	}
	b = append(b, tag(5, append([]byte{2, 0, 0, 0, 12, 0, 0, 0}, "name"...)...)...) // EXT4_FC_TAG_UNLINK of a name that is not there
	tail := binary.LittleEndian.AppendUint16(nil, 8)
	tail = binary.LittleEndian.AppendUint16(tail, uint16(size-len(b)-4))
	b = append(append(b, tail...), binary.LittleEndian.AppendUint32(nil, uint32(tid))...)
	b = binary.LittleEndian.AppendUint32(b, ext4.CRC32C(0, b))
	return append(b, make([]byte, size-len(b))...)
}

// fastArea writes blocks into the area of fast commits.
func (c *crafter) fastArea(t testing.TB, blocks ...[]byte) {
	t.Helper()
	for i, b := range blocks {
		if err := c.l.WriteJournal(c.l.Super.FastFirst+jbd2.Pos(i), b); err != nil {
			t.Fatal(err)
		}
	}
}

const (
	older = -time.Hour
	newer = time.Hour
)

var craftedLogs = []crafted{
	{name: "nothing more", kind: "v3", craft: func(testing.TB, *crafter) {}, transactions: 2},
	{name: "a third", kind: "v3", transactions: 3, craft: func(t testing.TB, c *crafter) {
		c.write(t, c.next.Block, c.encode(c.transaction(5, 2), newer))
	}},
	{name: "no commit block", kind: "v3", transactions: 2, partial: true, craft: func(t testing.TB, c *crafter) {
		blocks := c.encode(c.transaction(5, 2), newer)
		c.write(t, c.next.Block, blocks[:len(blocks)-1])
	}},
	{name: "number of another", kind: "v3", transactions: 2, craft: func(t testing.TB, c *crafter) {
		c.next.Sequence++
		c.write(t, c.next.Block, c.encode(c.transaction(5, 2), newer))
	}},
	{name: "unknown kind of block", kind: "none", transactions: 2, partial: true, craft: func(t testing.TB, c *crafter) {
		blocks := c.encode(c.transaction(5, 0), newer)
		blocks[0][7] = 9
		c.write(t, c.next.Block, blocks)
	}},
	{name: "old commit block", kind: "v3", transactions: 2, partial: true, craft: func(t testing.TB, c *crafter) {
		blocks := c.encode(c.transaction(5, 0), older)
		blocks[len(blocks)-1][59]++
		c.write(t, c.next.Block, blocks)
	}},
	{name: "damaged commit block", kind: "v3", fails: "commit block", craft: func(t testing.TB, c *crafter) {
		blocks := c.encode(c.transaction(5, 0), newer)
		blocks[len(blocks)-1][59]++
		c.write(t, c.next.Block, blocks)
	}},
	{name: "commit block of which only the first sector was written", kind: "v3", transactions: 3, looser: true, craft: func(t testing.TB, c *crafter) {
		blocks := c.encode(c.transaction(5, 0), newer)
		copy(blocks[len(blocks)-1][512:], bytes.Repeat([]byte("old"), 170))
		c.write(t, c.next.Block, blocks)
	}},
	{name: "old descriptor", kind: "v3", transactions: 2, partial: true, craft: func(t testing.TB, c *crafter) {
		blocks := c.encode(c.transaction(5, 0), older)
		blocks[0][len(blocks[0])-1]++
		c.write(t, c.next.Block, blocks)
	}},
	{name: "damaged descriptor", kind: "v3", fails: "descriptor or revoke", craft: func(t testing.TB, c *crafter) {
		blocks := c.encode(c.transaction(5, 0), newer)
		blocks[0][len(blocks[0])-1]++
		c.write(t, c.next.Block, blocks)
	}},
	{name: "damaged descriptor, no commit block", kind: "v3", transactions: 2, partial: true, craft: func(t testing.TB, c *crafter) {
		blocks := c.encode(c.transaction(5, 0), newer)
		blocks[0][len(blocks[0])-1]++
		c.write(t, c.next.Block, blocks[:len(blocks)-1])
	}},
	{name: "old revoke block", kind: "v3", transactions: 2, partial: true, craft: func(t testing.TB, c *crafter) {
		blocks := c.encode(c.transaction(5, 5), older)
		blocks[0][len(blocks[0])-1]++
		c.write(t, c.next.Block, blocks)
	}},
	{name: "damaged revoke block", kind: "v3", fails: "descriptor or revoke", craft: func(t testing.TB, c *crafter) {
		blocks := c.encode(c.transaction(5, 5), newer)
		blocks[0][len(blocks[0])-1]++
		c.write(t, c.next.Block, blocks)
	}},
	{name: "too many revoke records", kind: "v3", fails: "revoke records", craft: func(t testing.TB, c *crafter) {
		blocks := c.encode(c.transaction(5, 5), newer)
		binary.BigEndian.PutUint32(blocks[0][12:], 1021)
		c.l.SealTail(blocks[0])
		c.write(t, c.next.Block, blocks)
	}},
	{name: "too many revoke records, no commit block", kind: "v3", transactions: 2, partial: true, looser: true, craft: func(t testing.TB, c *crafter) {
		blocks := c.encode(c.transaction(5, 5), newer)
		binary.BigEndian.PutUint32(blocks[0][12:], 1021)
		c.l.SealTail(blocks[0])
		c.write(t, c.next.Block, blocks[:len(blocks)-1])
	}},
	{name: "as many revoke records as fit", kind: "none", transactions: 3, craft: func(t testing.TB, c *crafter) {
		blocks := c.encode(c.transaction(0, 5), newer)
		binary.BigEndian.PutUint32(blocks[0][12:], 1024)
		c.write(t, c.next.Block, blocks)
	}},
	{name: "damaged block", kind: "v3", fails: "wrong checksum of block", craft: func(t testing.TB, c *crafter) {
		c.edit(t, 12, func(b []byte) { b[500]++ })
	}},
	{name: "damaged block, revoked since", kind: "v3", transactions: 3, craft: func(t testing.TB, c *crafter) {
		c.edit(t, 12, func(b []byte) { b[500]++ })
		txn := c.transaction(0, 0)
		txn.Revokes = []addr.Block{c.txns[0].Blocks[0].Home}
		c.write(t, c.next.Block, c.encode(txn, newer))
	}},
	{name: "damaged block, written again since", kind: "v3", transactions: 3, looser: true, craft: func(t testing.TB, c *crafter) {
		c.edit(t, 12, func(b []byte) { b[500]++ })
		txn := c.transaction(0, 0)
		txn.Blocks = []jbd2.Block{c.txns[0].Blocks[0]}
		c.write(t, c.next.Block, c.encode(txn, newer))
	}},
	{name: "block written again since, damaged", kind: "v3", fails: "wrong checksum of block", craft: func(t testing.TB, c *crafter) {
		txn := c.transaction(0, 0)
		txn.Blocks = []jbd2.Block{c.txns[0].Blocks[0]}
		blocks := c.encode(txn, newer)
		blocks[1][500]++
		c.write(t, c.next.Block, blocks)
	}},
	{name: "damaged block, without checksums", kind: "none", transactions: 2, craft: func(t testing.TB, c *crafter) {
		c.edit(t, 12, func(b []byte) { b[500]++ })
	}},
	{name: "damaged block, one checksum", kind: "v1", fails: "commit block", craft: func(t testing.TB, c *crafter) {
		c.edit(t, 12, func(b []byte) { b[500]++ })
	}},
	{name: "one checksum that is not there", kind: "v1", transactions: 3, craft: func(t testing.TB, c *crafter) {
		blocks := c.encode(c.transaction(5, 0), newer)
		clear(blocks[len(blocks)-1][12:20])
		c.write(t, c.next.Block, blocks)
	}},
	{name: "the last before its blocks", kind: "v1-async", transactions: 2, partial: true, craft: func(t testing.TB, c *crafter) {
		blocks := c.encode(c.transaction(5, 0), newer)
		blocks[3][100]++
		c.write(t, c.next.Block, blocks)
	}},
	{name: "the last before its blocks, which have checksums", kind: "v3-async", transactions: 2, partial: true, looser: true, craft: func(t testing.TB, c *crafter) {
		blocks := c.encode(c.transaction(5, 0), newer)
		blocks[3][100]++
		c.write(t, c.next.Block, blocks)
	}},
	{name: "another after one before its blocks, which have checksums", kind: "v3-async", fails: "wrong checksum of block", craft: func(t testing.TB, c *crafter) {
		blocks := c.encode(c.transaction(5, 0), newer)
		blocks[3][100]++
		c.write(t, c.next.Block, blocks)
		c.next.Block, c.next.Sequence = wrap(c.l, c.next.Block, len(blocks)), c.next.Sequence+1
		c.write(t, c.next.Block, c.encode(c.transaction(5, 0), newer))
	}},
	{name: "another after one before its blocks", kind: "v1-async", fails: "not whole", craft: func(t testing.TB, c *crafter) {
		blocks := c.encode(c.transaction(5, 0), newer)
		blocks[3][100]++
		c.write(t, c.next.Block, blocks)
		c.next.Block, c.next.Sequence = wrap(c.l, c.next.Block, len(blocks)), c.next.Sequence+1
		c.write(t, c.next.Block, c.encode(c.transaction(5, 0), newer))
	}},
	{name: "another after a damaged commit block", kind: "v3-async", fails: "not whole", stricter: true, craft: func(t testing.TB, c *crafter) {
		blocks := c.encode(c.transaction(5, 0), newer)
		blocks[len(blocks)-1][59]++
		c.write(t, c.next.Block, blocks)
		c.next.Block, c.next.Sequence = wrap(c.l, c.next.Block, len(blocks)), c.next.Sequence+1
		c.write(t, c.next.Block, c.encode(c.transaction(5, 0), newer))
	}},
	{name: "beyond the end of the file system", kind: "none", fails: "of a file system of", craft: func(t testing.TB, c *crafter) {
		c.edit(t, 11, func(b []byte) { binary.BigEndian.PutUint32(b[12:], 12288) })
	}},
	{name: "before the first block", kind: "none", fails: "of a file system of", stricter: true, craft: func(t testing.TB, c *crafter) {
		c.edit(t, 11, func(b []byte) { binary.BigEndian.PutUint32(b[12:], 0) })
	}},
	{name: "in the journal", kind: "none", fails: "which is in the journal", stricter: true, craft: func(t testing.TB, c *crafter) {
		at, err := c.l.Where(900)
		if err != nil {
			t.Fatal(err)
		}
		c.edit(t, 11, func(b []byte) { binary.BigEndian.PutUint32(b[12:], uint32(at)) })
	}},
	{name: "tags up to the end", kind: "none", transactions: 2, partial: true, craft: func(t testing.TB, c *crafter) {
		// No tag is marked as the last; there are as many as there is room for.
		blocks := c.encode(c.transaction(5, 0), newer)
		binary.BigEndian.PutUint16(blocks[0][12+6:], 0)
		for i := range 123 {
			copy(blocks[0][36+8*i:], []byte{0, 0, 0x2e, byte(i), 0, 0, 0, 2})
		}
		c.write(t, c.next.Block, blocks)
	}},
	{name: "round and round", kind: "none", fails: "longer than the log", endless: true, craft: func(t testing.TB, c *crafter) {
		block := c.encode(c.transaction(0, 1), newer)[0]
		binary.BigEndian.PutUint32(block[8:], 2)
		for p := c.l.Super.First; p < c.l.Super.Last; p++ {
			c.write(t, p, [][]byte{block})
		}
	}},
	{name: "once round", kind: "none", fails: "longer than the log", endless: true, craft: func(t testing.TB, c *crafter) {
		block := c.encode(c.transaction(1, 0), newer)[0]
		binary.BigEndian.PutUint32(block[8:], 2)
		clear(block[12:])
		for p := c.l.Super.First; p < c.l.Super.Last; p++ {
			c.write(t, p, [][]byte{block})
		}
	}},
	{name: "the superblock", kind: "v3", transactions: 3, craft: func(t testing.TB, c *crafter) {
		super, err := ext4.ReadSuper(c.d)
		if err != nil {
			t.Fatal(err)
		}
		super[0x78] = 'L' // s_volume_name
		if super, err = ext4.SetRecover(super, false); err != nil {
			t.Fatal(err)
		}
		txn := c.transaction(1, 0)
		txn.Blocks = append(txn.Blocks, jbd2.Block{Home: 1, Data: super})
		c.write(t, c.next.Block, c.encode(txn, newer))
	}},
	{name: "a grown file system", kind: "none", transactions: 3, stricter: true, craft: func(t testing.TB, c *crafter) {
		super, err := ext4.ReadSuper(c.d)
		if err != nil {
			t.Fatal(err)
		}
		binary.LittleEndian.PutUint32(super[4:], 12288+4096)
		txn := c.transaction(1, 0)
		txn.Blocks[0].Home = 12288 + 4000
		txn.Blocks = append(txn.Blocks, jbd2.Block{Home: 1, Data: super})
		c.write(t, c.next.Block, c.encode(txn, newer))
	}},
	{name: "a file system that grew beyond the disk", kind: "none", fails: "the disk ends before", stricter: true, craft: func(t testing.TB, c *crafter) {
		super, err := ext4.ReadSuper(c.d)
		if err != nil {
			t.Fatal(err)
		}
		binary.LittleEndian.PutUint32(super[4:], 12288+4097)
		txn := c.transaction(1, 0)
		txn.Blocks = append(txn.Blocks, jbd2.Block{Home: 1, Data: super})
		c.write(t, c.next.Block, c.encode(txn, newer))
	}},
	{name: "no superblock", kind: "none", fails: "not an ext", stricter: true, craft: func(t testing.TB, c *crafter) {
		txn := c.transaction(1, 0)
		txn.Blocks[0].Home = 1
		c.write(t, c.next.Block, c.encode(txn, newer))
	}},
	{name: "wrapped around before fast commits", kind: "v3-fast", transactions: 3, since510: true, craft: func(t testing.TB, c *crafter) {
		// The kernel writes such logs, and reads them. e2fsck 1.47.0 does not.
		c.move(t, c.l.Super.Last-15)
		c.write(t, c.next.Block, c.encode(c.transaction(20, 2), newer))
	}},
	{name: "fast commits", kind: "v3-fast", transactions: 2, fast: 5, craft: func(t testing.TB, c *crafter) {
		c.fastArea(t, c.fastCommit(4, true), c.fastCommit(4, false))
	}},
	{name: "fast commits of a transaction that is committed", kind: "v3-fast", transactions: 2, craft: func(t testing.TB, c *crafter) {
		c.fastArea(t, c.fastCommit(3, true), c.fastCommit(3, false))
	}},
	{name: "fast commits, then old ones", kind: "v3-fast", transactions: 2, fast: 3, craft: func(t testing.TB, c *crafter) {
		c.fastArea(t, c.fastCommit(4, true), c.fastCommit(3, false))
	}},
	{name: "fast commits, then a damaged one", kind: "v3-fast", transactions: 2, fast: 3, craft: func(t testing.TB, c *crafter) {
		second := c.fastCommit(4, false)
		second[14]++
		c.fastArea(t, c.fastCommit(4, true), second)
	}},
	{name: "a damaged fast commit", kind: "v3-fast", transactions: 2, fastFails: "wrong checksum", craft: func(t testing.TB, c *crafter) {
		first := c.fastCommit(4, true)
		first[20]++
		c.fastArea(t, first)
	}},
	{name: "an unknown fast commit", kind: "v3-fast", transactions: 2, fastFails: "unknown features", craft: func(t testing.TB, c *crafter) {
		first := c.fastCommit(4, true)
		first[4] = 1
		c.fastArea(t, first)
	}},
	{name: "fast commits up to the end", kind: "v3-fast", transactions: 2, fast: 3 + 2*14, fastFails: "do not end", craft: func(t testing.TB, c *crafter) {
		c.fastArea(t, c.fastCommit(4, true))
		for p := c.l.Super.FastFirst + 1; p < c.l.Super.FastLast; p++ {
			if err := c.l.WriteJournal(p, c.fastCommit(4, false)); err != nil {
				t.Fatal(err)
			}
		}
	}},
}

// make makes the disk of a crafted log.
func (c crafted) make(t testing.TB) ([]byte, *jbd2.Recording) {
	t.Helper()
	k := kinds[slices.IndexFunc(kinds, func(k kind) bool { return k.name == c.kind })]
	b := append(k.fresh(t), make([]byte, 4<<20)...) // the disk is larger than the file system
	d := jbd2.NewRecording(bytes.NewReader(b))
	l := load(t, d)
	made := &crafter{maker: newMaker(l, 11), l: l, d: d, next: jbd2.Start{Block: 11, Sequence: 2}}
	for range 2 {
		txn := made.transaction(3, 0)
		p := add(t, l, made.next, txn)
		made.next = jbd2.Start{Block: p.End, Sequence: p.Sequence + 1}
		made.txns = append(made.txns, txn)
	}
	c.craft(t, made)
	return b, d
}

// TestCrafted checks what is found in crafted logs.
func TestCrafted(t *testing.T) {
	for _, c := range craftedLogs {
		t.Run(c.name, func(t *testing.T) {
			_, d := c.make(t)
			l := load(t, d)
			ops := len(d.Ops())
			s, err := l.Scan()
			if err == nil {
				err = s.Whole()
			}
			var corrupt *jbd2.CorruptError
			switch {
			case c.fails != "":
				if !errors.As(err, &corrupt) || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("got %v, %s", err, describe(l, s))
				}
			case err != nil:
				t.Fatal(err)
			case len(s.Transactions) != c.transactions || s.Partial != c.partial || s.Next != jbd2.TID(2+c.transactions):
				t.Error(describe(l, s))
			case s.Fast.Tags != c.fast || (s.Fast.Err != nil) != (c.fastFails != "") || c.fastFails != "" && !strings.Contains(s.Fast.Err.Error(), c.fastFails):
				t.Error(describe(l, s))
			}
			_, err = l.Replay()
			bad := c.fails != "" || c.fastFails != "" || c.fast > 0
			if (err != nil) != bad || bad && len(d.Ops()) != ops {
				t.Errorf("%v, %d writes", err, len(d.Ops())-ops)
			}
		})
	}
}
