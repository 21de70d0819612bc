package jbd2_test

import (
	"bytes"
	"io"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/jbd2"
)

// counting counts reads.
type counting struct {
	io.ReaderAt
	reads int
}

func (c *counting) ReadAt(b []byte, off int64) (int, error) {
	c.reads++
	return c.ReaderAt.ReadAt(b, off)
}

// FuzzLog checks that, whatever the journal's superblock and the log say, reading the log takes
// time in proportion to its length; that what Scan accepts can be replayed, into the
// file system and nowhere else, after which the log is empty; and that whatever could be
// appended is found again.
func FuzzLog(f *testing.F) {
	bare := kind{"none-fast", []string{"-t", "ext4", "-b", "1024", "-J", "size=2", "-O", "fast_commit,^metadata_csum,^64bit"}, 0, jbd2.IncompatFastCommit, 8}
	fuzzed := []kind{kinds[0], bare, kinds[1], kinds[2], kinds[5]}
	var bases [][]byte
	for _, k := range fuzzed {
		b := bytes.Clone(k.fresh(f))
		d := jbd2.NewRecording(bytes.NewReader(b))
		l := load(f, d)
		m := newMaker(l, 1)
		at := jbd2.Start{Block: 1, Sequence: 2}
		for range 3 {
			at = jbd2.Start{Block: add(f, l, at, m.transaction(4, 3)).End, Sequence: at.Sequence + 1}
		}
		if k.incompat&jbd2.IncompatFastCommit != 0 {
			c := &crafter{maker: m, l: l, d: d}
			c.fastArea(f, c.fastCommit(5, true), c.fastCommit(5, false))
		}
		flatten(b, d)
		bases = append(bases, b)
	}
	for i := range fuzzed {
		f.Add(byte(i), false, []byte{})
		f.Add(byte(i), true, []byte{0, 0, 0x1f, 3})           // s_start
		f.Add(byte(i), true, []byte{0, 0, 0x13, 7, 1, 0, 12}) // s_maxlen
		f.Add(byte(i), true, []byte{2, 0, 3, 99, 0, 7, 5})    // a block of the log
	}
	f.Fuzz(func(t *testing.T, n byte, seal bool, edits []byte) {
		b := bases[int(n)%len(bases)]
		whole := jbd2.NewRecording(bytes.NewReader(b))
		l := load(t, whole)
		// Each edit is a block of the journal, an offset, and a value.
		for ; len(edits) >= 4 && len(edits) < 400; edits = edits[4:] {
			p := jbd2.Pos(edits[0])
			if p >= 0x80 { // the end of the journal
				p = l.Super.Length - 1 - (p & 0x7f)
			}
			block, err := l.ReadJournal(p)
			if err != nil {
				t.Fatal(err)
			}
			block[(int(edits[1])<<8|int(edits[2]))%len(block)] = edits[3]
			if err := l.WriteJournal(p, block); err != nil {
				t.Fatal(err)
			}
		}
		if seal {
			_ = jbd2.EditSuper(whole, func([]byte) {}) // it may no longer be a superblock
		}
		reads := &counting{ReaderAt: whole}
		d := jbd2.NewRecording(reads)
		hostile, err := jbd2.Open(d)
		if err != nil {
			return
		}
		s, err := hostile.Scan()
		if limit := 8*int(hostile.Super.Length) + 100; reads.reads > limit {
			t.Errorf("%d reads", reads.reads)
		}
		if err != nil {
			return
		}
		check(t, hostile, d, s)
	})
}

// check replays what Scan accepted, and appends to the emptied log.
func check(t *testing.T, l *jbd2.Log, d *jbd2.Recording, s *jbd2.Scan) {
	journal := make(map[addr.Block]bool)
	for p := range l.Super.Length {
		at, err := l.Where(p)
		if err != nil {
			t.Fatal(err)
		}
		journal[at] = p > 0
	}
	if _, err := l.Replay(); err != nil {
		if len(d.Ops()) > 0 {
			t.Fatalf("%d writes, then %v", len(d.Ops()), err)
		}
		return
	}
	for _, op := range d.Ops() {
		if at := addr.Block(op.Offset / int64(l.Super.BlockSize)); journal[at] || uint64(at) >= l.FS.Super.Blocks {
			t.Fatalf("block %d was written", at)
		}
	}
	again := load(t, d)
	if s := scan(t, again); !s.Empty || superOf(t, d).NeedsReplay() {
		t.Fatal(describe(again, s))
	}
	txn := newMaker(again, 2).transaction(3, 1)
	p, err := again.Append(jbd2.Start{Block: again.Super.First, Sequence: again.Super.Sequence + 1}, txn)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	if s := scan(t, load(t, d)); len(s.Transactions) != 1 || len(s.Transactions[0].Blocks) != 3 {
		t.Fatal(describe(again, s))
	}
}
