package jbd2_test

import (
	"errors"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/jbd2"
)

// withFastCommits is a log with two transactions, and fast commits for the one after them.
func withFastCommits(t *testing.T) (*jbd2.Recording, model) {
	t.Helper()
	c := craftedLogs[slices.IndexFunc(craftedLogs, func(c crafted) bool { return c.name == "fast commits" })]
	want, craft := make(model), c.craft
	c.craft = func(t testing.TB, made *crafter) {
		craft(t, made)
		for _, txn := range made.txns {
			want.apply(txn)
		}
	}
	_, d := c.make(t)
	return d, want
}

// TestRecovered checks that a disk is as the transactions in its log leave it, whatever fast commits there are.
func TestRecovered(t *testing.T) {
	d, want := withFastCommits(t)
	l := load(t, d)
	ops := len(d.Ops())
	if _, err := l.Replay(); !errors.Is(err, jbd2.ErrFastCommits) {
		t.Fatal(err)
	}
	fs, after, err := l.Recovered(scan(t, l))
	if err != nil {
		t.Fatal(err)
	}
	want.check(t, after, l.Super.BlockSize)
	if fs.Super.NeedsReplay() || len(d.Ops()) != ops {
		t.Errorf("needs a replay: %v; %d writes to the disk", fs.Super.NeedsReplay(), len(d.Ops())-ops)
	}
}

// TestMakeRoom makes room for a transaction, and cuts that at each write: fast commits for the transaction stay until
// it is committed itself.
func TestMakeRoom(t *testing.T) {
	d, want := withFastCommits(t)
	before := scan(t, load(t, d))
	work := jbd2.NewRecording(d)
	l := load(t, &blockwise{work, 1024})
	at, stats, err := l.MakeRoom()
	if err != nil {
		t.Fatal(err)
	}
	if at != (jbd2.Start{Block: l.Super.First, Sequence: before.Next}) || stats.Blocks == 0 {
		t.Errorf("%+v, %+v", at, stats)
	}
	moved := 0
	for n := range len(work.Ops()) + 1 {
		for _, kept := range []func(int) bool{func(int) bool { return true }, func(int) bool { return false }, func(i int) bool { return i == n-1 }} {
			cut := work.Crash(n, kept)
			s := scan(t, load(t, cut))
			if s.Next != before.Next || s.Fast != before.Fast || !superOf(t, cut).NeedsReplay() {
				t.Fatalf("after %d writes: %s", n, describe(l, s))
			}
			_, after, err := load(t, cut).Recovered(s)
			if err != nil {
				t.Fatal(err)
			}
			if want.check(t, after, l.Super.BlockSize); len(s.Transactions) == 0 {
				moved++
			}
		}
	}
	if moved == 0 {
		t.Error("the log did not move")
	}
	add(t, l, at, newMaker(l, 5).transaction(250, 0))
	if s := scan(t, load(t, work)); s.Next != at.Sequence+1 || s.Fast != (jbd2.FastCommits{}) {
		t.Error(describe(l, s))
	}
	if _, err := l.Replay(); err != nil {
		t.Error(err)
	}
}

// TestMakeRoomRemains checks that the log is not moved to where remains of the next transaction are whole.
func TestMakeRoomRemains(t *testing.T) {
	d, _ := withFastCommits(t)
	l := load(t, d)
	s := scan(t, l)
	for i, b := range l.Encode(jbd2.Start{Block: l.Super.First, Sequence: s.Next}, newMaker(l, 5).transaction(5, 0)) {
		if err := l.WriteJournal(l.Super.First+jbd2.Pos(i), b); err != nil {
			t.Fatal(err)
		}
	}
	ops := len(d.Ops())
	if _, _, err := l.MakeRoom(); err == nil || len(d.Ops()) != ops {
		t.Errorf("%v, %d writes", err, len(d.Ops())-ops)
	}
}
