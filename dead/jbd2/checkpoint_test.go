package jbd2_test

import (
	"bytes"
	"errors"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/jbd2"
)

// nearlyFull makes a log with little room behind what is in it, and something of
// the transaction that comes next, also in the block that the log begins with.
// With fast commits, there are some that wait for that transaction.
func nearlyFull(t *testing.T, k kind) (*jbd2.Recording, jbd2.Place) {
	b := k.fresh(t)
	d := jbd2.NewRecording(bytes.NewReader(b))
	l := load(t, d)
	m := newMaker(l, 3)
	at := jbd2.Place{Block: l.Super.Last - 120, Sequence: 4}
	for range 3 {
		at = jbd2.Place{Block: add(t, l, at, m.transaction(25, 5)).End, Sequence: at.Sequence + 1}
	}
	remains := l.Encode(at, m.transaction(100, 3))
	for i, block := range remains[:len(remains)-1] {
		if err := l.WriteJournal(wrap(l, at.Block, i), block); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.WriteJournal(l.Super.First, remains[0]); err != nil {
		t.Fatal(err)
	}
	if l.Super.FastCommit {
		c := &crafter{maker: m, l: l, d: d}
		c.fastArea(t, c.fastCommit(at.Sequence, true), c.fastCommit(at.Sequence, false))
	}
	if s := scan(t, l); next(s) != at || !s.Partial || (s.Fast.Tags > 0) != l.Super.FastCommit {
		t.Fatal(describe(l, s))
	}
	return d, at
}

// TestCheckpoint makes room by a checkpoint, and cuts it and the append after it
// everywhere: the old state, with its fast commits, or the new one.
func TestCheckpoint(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			before, at := nearlyFull(t, k)
			d := jbd2.NewRecording(before)
			l := load(t, &blockwise{d, int64(superOf(t, d).BlockSize)})
			m := newMaker(l, 9)
			txn := m.transaction(290, 0)
			if l.Super.FastCommit {
				if _, err := l.Append(at, txn); !errors.Is(err, jbd2.ErrNoRoom) {
					t.Fatal(err)
				}
				if _, err := l.Replay(); !errors.Is(err, jbd2.ErrFastCommits) {
					t.Fatal(err)
				}
			}
			place, stats, err := l.Checkpoint()
			if err != nil || place != (jbd2.Place{Block: l.Super.First, Sequence: at.Sequence}) || stats.Transactions != 3 || stats.Blocks == 0 {
				t.Fatal(place, stats, err)
			}
			s := scan(t, l)
			if len(s.Transactions) != 0 || next(s) != place || s.Partial || s.Empty || !superOf(t, d).NeedsReplay() {
				t.Fatal(describe(l, s))
			}
			p, err := l.Append(place, txn)
			if err != nil {
				t.Fatal(err)
			}
			appended := len(d.Ops())
			if err := p.Commit(); err != nil {
				t.Fatal(err)
			}
			recovered := func(r *jbd2.Recording) (*jbd2.Recording, bool) {
				l := load(t, r)
				fast := scan(t, l).Fast.Tags > 0
				if _, _, err := l.Checkpoint(); err != nil {
					t.Fatal(err)
				}
				return r, fast
			}
			oldState, fast := recovered(jbd2.NewRecording(before))
			newState, _ := recovered(d.Prefix(len(d.Ops())))
			ops := d.Ops()
			for n := 0; n <= len(ops); n++ {
				if n%7 != 0 && n < len(ops) && !ops[n-1].IsSync() && !ops[n].IsSync() {
					continue
				}
				for _, kept := range []func(int) bool{func(int) bool { return true }, func(int) bool { return m.random.IntN(2) == 0 }} {
					after, stillFast := recovered(d.Crash(n, kept))
					isOld := len(outside(t, l, after, oldState)) == 0 && stillFast == fast
					isNew := len(outside(t, l, after, newState)) == 0 && !stillFast
					if !isOld && !isNew || n <= appended && !isOld || n == len(ops) && !isNew {
						t.Fatalf("after %d of %d (append %d): old %v, new %v", n, len(ops), appended, isOld, isNew)
					}
				}
			}
		})
	}
}

// TestCheckpointRefused wants nothing to be written where a recovery would fail.
func TestCheckpointRefused(t *testing.T) {
	for _, c := range craftedLogs {
		_, d := c.make(t)
		l := load(t, d)
		ops := len(d.Ops())
		if _, _, err := l.Checkpoint(); (err != nil) != (c.fails != "") || err != nil && len(d.Ops()) != ops {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	b := kinds[0].fresh(t)
	d := jbd2.NewRecording(bytes.NewReader(b))
	if at, _, err := load(t, d).Checkpoint(); err != nil || at.Block != 1 || len(d.Ops()) > 0 {
		t.Error("of an empty log:", at, err)
	}
}

// TestReplayStats counts what a replay did.
func TestReplayStats(t *testing.T) {
	b := kinds[0].fresh(t)
	d := jbd2.NewRecording(bytes.NewReader(b))
	l := load(t, d)
	m := newMaker(l, 3)
	block := func(homes ...addr.Block) *jbd2.Transaction {
		txn := m.transaction(len(homes), 0)
		for i, home := range homes {
			txn.Blocks[i].Home = m.first + home
		}
		return txn
	}
	at := jbd2.Place{Block: 1, Sequence: 4}
	last := block(1)
	last.Revokes = []addr.Block{m.first + 2, m.first + 7}
	for _, txn := range []*jbd2.Transaction{block(1, 2, 3), block(1, 2), last} {
		at = jbd2.Place{Block: add(t, l, at, txn).End, Sequence: at.Sequence + 1}
	}
	stats, err := l.Replay()
	if want := (jbd2.Stats{Transactions: 3, Blocks: 2, Superseded: 2, Revoked: 2, Next: 8}); err != nil || stats != want {
		t.Errorf("%+v instead of %+v, %v", stats, want, err)
	}
}
