package jbd2_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/jbd2"
)

// TestAppend appends transactions until the log has wrapped around, and replays
// them: our replay and that of e2fsprogs give the same result.
func TestAppend(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			b := k.fresh(t)
			d := jbd2.NewRecording(bytes.NewReader(b))
			l := load(t, d)
			if l.Super.TagSize() != k.tag {
				t.Fatalf("tags of %d bytes", l.Super.TagSize())
			}
			m, want := newMaker(l, 1), make(model)
			at := jbd2.Start{Block: l.Super.Last - 150, Sequence: 1<<32 - 3} // both wrap around
			if l.Super.FastCommit {
				at.Block = l.Super.Last - 500
			}
			if err := jbd2.EditSuper(d, func(b []byte) { copy(b[0x18:], []byte{0xff, 0xff, 0xff, 0xfd}) }); err != nil {
				t.Fatal(err)
			}
			l = load(t, d)
			for i, n := range []int{1, 100, 0, 250, 40} {
				txn := m.transaction(n, []int{0, 20, 50, 0, 50}[i])
				p := add(t, l, at, txn)
				want.apply(txn)
				at = jbd2.Start{Block: p.End, Sequence: at.Sequence + 1}
				s := scan(t, l)
				if len(s.Transactions) != i+1 || next(s) != at || s.Partial || !superOf(t, d).NeedsReplay() {
					t.Fatalf("after %d: %s", i+1, describe(l, s))
				}
			}
			if s := scan(t, l); (s.End < s.Start) == l.Super.FastCommit || s.Next != 2 {
				t.Fatal("the log did not wrap around:", describe(l, s))
			}
			if _, err := l.Append(at, m.transaction(100, 0)); errors.Is(err, jbd2.ErrNoRoom) != l.Super.FastCommit {
				t.Fatal("beyond the end of the log:", err)
			}
			if !l.Super.FastCommit { // debugfs takes the area of fast commits for a piece of the log
				checkWithDebugfs(t, b, d, want, l.Super.BlockSize)
			}
			checkWithE2fsck(t, b, d, want, l.Super.BlockSize)
			if _, err := l.Replay(); err != nil {
				t.Fatal(err)
			}
			want.check(t, d, l.Super.BlockSize)
			if s := scan(t, load(t, d)); !s.Empty || s.Next != 3 || superOf(t, d).NeedsReplay() {
				t.Errorf("after the replay: %s", describe(l, s))
			}
			if out, err := exec.Command("e2fsck", "-fn", save(t, b, d)).CombinedOutput(); err != nil {
				t.Errorf("e2fsck: %v: %s", err, out)
			}
		})
	}
}

// checkWithDebugfs replays the log with debugfs, and checks the result.
func checkWithDebugfs(t *testing.T, b []byte, d *jbd2.Recording, want model, size uint32) {
	t.Helper()
	path := save(t, b, d)
	out := run(t, "debugfs", "-w", "-R", "journal_run", path)
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if superOf(t, bytes.NewReader(after)).NeedsReplay() {
		t.Fatalf("debugfs did not replay: %s", out)
	}
	want.check(t, bytes.NewReader(after), size)
}

// checkWithE2fsck replays the log with e2fsck, and checks the result.
func checkWithE2fsck(t *testing.T, b []byte, d *jbd2.Recording, want model, size uint32) {
	t.Helper()
	path := save(t, b, d)
	out := run(t, "e2fsck", "-y", "-E", "journal_only", path)
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want.check(t, bytes.NewReader(after), size); t.Failed() {
		t.Fatalf("e2fsck: %s", out)
	}
}

// TestAppendWhere checks that a transaction is accepted only where it belongs, and that
// a refused one changes nothing.
func TestAppendWhere(t *testing.T) {
	k := kinds[5]
	b := k.fresh(t)
	base := jbd2.NewRecording(bytes.NewReader(b))
	l := load(t, base)
	m := newMaker(l, 1)
	first, full := m.transaction(3, 0), m.transaction(200, 0)
	add(t, l, jbd2.Start{Block: 700, Sequence: 9}, first)
	used := base.Prefix(len(base.Ops()))
	s := scan(t, l)
	good := next(s)
	block := func(home addr.Block, size int) *jbd2.Transaction {
		return &jbd2.Transaction{Blocks: []jbd2.Block{{Home: home, Data: make([]byte, size)}}, Time: full.Time}
	}
	size := int(l.Super.BlockSize)
	inJournal, err := l.Where(5)
	if err != nil {
		t.Fatal(err)
	}
	twice := block(m.first, size)
	twice.Blocks = append(twice.Blocks, twice.Blocks[0])
	revoked := block(m.first, size)
	revoked.Revokes = []addr.Block{m.first}
	huge := &jbd2.Transaction{Time: full.Time}
	for i := range 1020 {
		huge.Blocks = append(huge.Blocks, jbd2.Block{Home: addr.Block(9000 + i), Data: make([]byte, size)})
	}
	for _, tc := range []struct {
		name  string
		empty bool
		at    jbd2.Start
		txn   *jbd2.Transaction
		want  error // nil means any
	}{
		{"before the end", false, jbd2.Start{Block: good.Block - 1, Sequence: good.Sequence}, full, jbd2.ErrStart},
		{"after the end", false, jbd2.Start{Block: good.Block + 1, Sequence: good.Sequence}, full, jbd2.ErrStart},
		{"an older number", false, jbd2.Start{Block: good.Block, Sequence: good.Sequence - 1}, full, jbd2.ErrStart},
		{"a newer number", false, jbd2.Start{Block: good.Block, Sequence: good.Sequence + 1}, full, jbd2.ErrStart},
		{"the superblock", true, jbd2.Start{Block: 0, Sequence: 5}, full, jbd2.ErrStart},
		{"beyond the log", true, jbd2.Start{Block: l.Super.Last, Sequence: 5}, full, jbd2.ErrStart},
		{"a number that was used", true, jbd2.Start{Block: 1, Sequence: 0}, full, jbd2.ErrStart},
		{"no room", false, good, huge, jbd2.ErrNoRoom},
		{"no room in all of the log", true, jbd2.Start{Block: 1, Sequence: 5}, huge, jbd2.ErrNoRoom},
		{"nothing", false, good, &jbd2.Transaction{Time: time.Unix(1<<32, 0)}, nil},
		{"no time", true, jbd2.Start{Block: 1, Sequence: 5}, &jbd2.Transaction{Blocks: full.Blocks}, nil},
		{"half a block", false, good, block(m.first, size/2), nil},
		{"a block twice", false, good, twice, nil},
		{"a block and its revocation", false, good, revoked, nil},
		{"a block of the journal", false, good, block(inJournal, size), nil},
		{"a number of 33 bits", false, good, block(1<<32, size), nil},
		{"a block beyond the end", false, good, block(addr.Block(l.FS.Super.Blocks), size), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := used.Prefix(len(used.Ops()))
			if tc.empty {
				d = jbd2.NewRecording(bytes.NewReader(b))
			}
			ops := len(d.Ops())
			_, err := load(t, d).Append(tc.at, tc.txn)
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("got %v", err)
			}
			if tc.name != "a block beyond the end" && len(d.Ops()) != ops {
				t.Errorf("%d writes", len(d.Ops())-ops)
			}
			var room *jbd2.NoRoomError
			if errors.As(err, &room) && room.Need <= room.Free {
				t.Errorf("it does not fit: %v", room)
			}
		})
	}
}

// TestAppendTime checks that the times in a log never go back.
func TestAppendTime(t *testing.T) {
	b := kinds[5].fresh(t)
	d := jbd2.NewRecording(bytes.NewReader(b))
	l := load(t, d)
	m := newMaker(l, 1)
	at := jbd2.Start{Block: 5, Sequence: 5}
	for _, when := range []int64{100, 50, 200} {
		txn := m.transaction(3, 0)
		txn.Time = time.Unix(when, 0)
		at = jbd2.Start{Block: add(t, l, at, txn).End, Sequence: at.Sequence + 1}
	}
	for i, want := range []int64{100, 100, 200} {
		if got := scan(t, l).Transactions[i].Time.Unix(); got != want {
			t.Errorf("transaction %d is of %d instead of %d", i, got, want)
		}
	}
}

// TestAppendFits fills the log to the last block that may be used.
func TestAppendFits(t *testing.T) {
	b := kinds[5].fresh(t)
	for _, n := range []int{1000, 1003, 1004} {
		d := jbd2.NewRecording(bytes.NewReader(b))
		l := load(t, d)
		txn := &jbd2.Transaction{Time: time.Unix(1, 0)}
		for i := range n {
			txn.Blocks = append(txn.Blocks, jbd2.Block{Home: addr.Block(9000 + i), Data: make([]byte, l.Super.BlockSize)})
		}
		p, err := l.Append(jbd2.Start{Block: 77, Sequence: 2}, txn)
		// 61 tags of 16 bytes fit into 1024 bytes less header, one UUID and tail. There are 17
		// descriptor blocks, and a commit block, in a log of 1023 blocks, one of which stays
		// free.
		if want := n <= 1022-17-1; (err == nil) != want {
			t.Errorf("%d blocks: %v", n, err)
		}
		if err != nil {
			continue
		}
		if err := p.Commit(); err != nil {
			t.Fatal(err)
		}
		if s := scan(t, l); len(s.Transactions) != 1 || len(s.Transactions[0].Blocks) != n {
			t.Error(describe(l, s))
		}
	}
}

// TestAppendNotInUse refuses a log that a mount would empty unread.
func TestAppendNotInUse(t *testing.T) {
	b := kinds[0].fresh(t)
	d := jbd2.NewRecording(bytes.NewReader(b))
	l := load(t, d)
	m := newMaker(l, 1)
	add(t, l, jbd2.Start{Block: 5, Sequence: 5}, m.transaction(3, 0))
	super := make([]byte, 1024)
	if _, err := bytes.NewReader(b).ReadAt(super, 1024); err != nil { // without needs_recovery
		t.Fatal(err)
	}
	if _, err := d.WriteAt(super, 1024); err != nil {
		t.Fatal(err)
	}
	l = load(t, d)
	ops := len(d.Ops())
	if _, err := l.Append(next(scan(t, l)), m.transaction(1, 0)); !errors.Is(err, jbd2.ErrNotInUse) {
		t.Error(err)
	}
	if _, err := l.Replay(); !errors.Is(err, jbd2.ErrNotInUse) {
		t.Error(err)
	}
	if len(d.Ops()) != ops {
		t.Error("something was written")
	}
}

// TestAppendOverRemains appends where the dead kernel had begun to write a
// transaction of the same number, out of order and including its commit block.
func TestAppendOverRemains(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			b := k.fresh(t)
			for missing := range 5 {
				d := jbd2.NewRecording(bytes.NewReader(b))
				l := load(t, d)
				m := newMaker(l, uint64(missing))
				start := jbd2.Pos(900)
				if l.Super.FastCommit {
					start = 100
				}
				add(t, l, jbd2.Start{Block: start, Sequence: 5}, m.transaction(70, 3))
				s := scan(t, l)
				// Everything that was to be written, except for the first block or one after it.
				blocks := l.Encode(next(s), m.transaction(200, 3))
				for i, block := range blocks {
					if i != missing && i != missing*40 {
						if err := l.WriteJournal(wrap(l, s.End, i), block); err != nil {
							t.Fatal(err)
						}
					}
				}
				if missing == 0 {
					if again := scan(t, l); again.Next != s.Next || again.Partial {
						t.Fatal(describe(l, again))
					}
				}
				// Without checksums, a missing block is not noticed; with them, a recovery
				// fails because of it.
				if again, err := l.Scan(); err != nil || len(again.Transactions) != 1 {
					continue
				}
				checkOldOrNew(t, d, m.transaction(180, 10), 17)
			}
		})
	}
}

// wrap returns the position n blocks after p.
func wrap(l *jbd2.Log, p jbd2.Pos, n int) jbd2.Pos {
	for range n {
		if p++; p == l.Super.Last {
			p = l.Super.First
		}
	}
	return p
}

// blockwise writes one block at a time, so that a crash comes between any two.
type blockwise struct {
	*jbd2.Recording
	size int64
}

func (d *blockwise) WriteAt(b []byte, off int64) (int, error) {
	for at := int64(0); at < int64(len(b)); at += d.size {
		if n, err := d.Recording.WriteAt(b[at:at+d.size], off+at); err != nil {
			return int(at) + n, err
		}
	}
	return len(b), nil
}

// checkOldOrNew appends a transaction to the log of a disk, commits and replays
// it, and cuts the writes at many instants, with the writes since the last sync present
// or not: a recovery must give the old state or the new one. It cuts at every write
// around syncs, and elsewhere at every each-th.
func checkOldOrNew(t *testing.T, before *jbd2.Recording, txn *jbd2.Transaction, each int) {
	t.Helper()
	d := jbd2.NewRecording(before)
	l := load(t, &blockwise{d, int64(superOf(t, d).BlockSize)})
	s := scan(t, l)
	at := next(s)
	if s.Empty {
		at = jbd2.Start{Block: l.Super.Last - 7, Sequence: s.Next + 1}
		if l.Super.FastCommit { // the transaction must not wrap around
			at.Block = l.Super.First
		}
	}
	p, err := l.Append(at, txn)
	if err != nil {
		t.Fatal(err)
	}
	appended := len(d.Ops())
	if err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	committed := len(d.Ops())
	if _, err := l.Replay(); err != nil {
		t.Fatal(err)
	}
	replayed := func(r *jbd2.Recording) *jbd2.Recording {
		if _, err := load(t, r).Replay(); err != nil {
			t.Fatal(err)
		}
		return r
	}
	oldState, newState := replayed(jbd2.NewRecording(before)), replayed(d.Prefix(committed))
	if len(outside(t, l, oldState, newState)) == 0 {
		t.Fatal("the transaction changes nothing")
	}
	random := newMaker(l, 7).random
	ops := d.Ops()
	for n := 0; n <= len(ops); n++ {
		if n%each != 0 && n < len(ops) && !ops[n-1].IsSync() && !ops[n].IsSync() {
			continue
		}
		for _, kept := range []func(int) bool{
			func(int) bool { return true }, func(int) bool { return random.IntN(2) == 0 }, func(i int) bool { return i == n-1 },
		} {
			cut := d.Crash(n, kept)
			after := replayed(cut)
			isOld, isNew := len(outside(t, l, after, oldState)) == 0, len(outside(t, l, after, newState)) == 0
			switch {
			case !isOld && !isNew:
				t.Fatalf("after %d of %d writes (append %d, commit %d) it is neither", n, len(d.Ops()), appended, committed)
			case n <= appended && !isOld:
				t.Fatalf("after %d writes of %d it is new before it is committed", n, appended)
			case n >= committed && !isNew:
				t.Fatalf("after %d writes it is old, although %d committed it", n, committed)
			}
		}
	}
}

// TestCrash cuts an append to a log of each kind, empty or not.
func TestCrash(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			b := k.fresh(t)
			d := jbd2.NewRecording(bytes.NewReader(b))
			l := load(t, d)
			m := newMaker(l, 3)
			checkOldOrNew(t, d, m.transaction(30, 5), 1)
			at := jbd2.Start{Block: l.Super.Last - 60, Sequence: 4}
			if l.Super.FastCommit {
				at.Block = l.Super.Last - 400
			}
			for range 3 {
				p := add(t, l, at, m.transaction(25, 5))
				at = jbd2.Start{Block: p.End, Sequence: at.Sequence + 1}
			}
			checkOldOrNew(t, d, m.transaction(30, 60), 1)
		})
	}
}

// TestCrashE2fsck lets e2fsck recover from some of the cuts.
func TestCrashE2fsck(t *testing.T) {
	for _, k := range []kind{kinds[0], kinds[4], kinds[6]} {
		t.Run(k.name, func(t *testing.T) {
			b := k.fresh(t)
			d := jbd2.NewRecording(bytes.NewReader(b))
			l := load(t, d)
			m := newMaker(l, 4)
			first, second := m.transaction(25, 0), m.transaction(10, 5)
			p := add(t, l, jbd2.Start{Block: 10, Sequence: 2}, first)
			begun := len(d.Ops())
			l = load(t, &blockwise{d, int64(l.Super.BlockSize)})
			add(t, l, jbd2.Start{Block: p.End, Sequence: 3}, second)
			if _, err := l.Replay(); err != nil {
				t.Fatal(err)
			}
			for n := begun; n <= len(d.Ops()); n += 3 {
				cut := d.Prefix(n)
				if scan(t, load(t, cut)).Empty {
					continue
				}
				path := save(t, b, cut)
				out := run(t, "e2fsck", "-fy", path)
				after, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				want := make(model)
				want.apply(first)
				if len(scan(t, load(t, cut)).Transactions) == 2 {
					want.apply(second)
				}
				want.check(t, bytes.NewReader(after), l.Super.BlockSize)
				if t.Failed() {
					t.Fatalf("after %d: %s", n, out)
				}
			}
		})
	}
}

// TestCommitUndone checks that a transaction whose commit block is zeroed is gone.
func TestCommitUndone(t *testing.T) {
	b := kinds[6].fresh(t)
	d := jbd2.NewRecording(bytes.NewReader(b))
	l := load(t, d)
	m := newMaker(l, 4)
	p := add(t, l, jbd2.Start{Block: 10, Sequence: 2}, m.transaction(25, 0))
	p = add(t, l, jbd2.Start{Block: p.End, Sequence: 3}, m.transaction(5, 0))
	if err := p.Commit(); err == nil {
		t.Error("it was committed twice")
	}
	if err := l.WriteJournal(p.CommitAt, make([]byte, l.Super.BlockSize)); err != nil {
		t.Fatal(err)
	}
	if s := scan(t, l); len(s.Transactions) != 1 || !s.Partial || next(s) != p.Start {
		t.Error(describe(l, s))
	}
}

// failing is a disk that fails after some writes and syncs.
type failing struct {
	*jbd2.Recording
	left int
}

var errDisk = errors.New("the disk fails")

func (f *failing) WriteAt(b []byte, off int64) (int, error) {
	if f.left--; f.left < 0 {
		return 0, errDisk
	}
	return f.Recording.WriteAt(b, off)
}

func (f *failing) Sync() error {
	if f.left--; f.left < 0 {
		return errDisk
	}
	return f.Recording.Sync()
}

// TestDiskFails checks that every failure of the disk is returned.
func TestDiskFails(t *testing.T) {
	b := kinds[6].fresh(t)
	for n := 0; ; n++ {
		d := &failing{jbd2.NewRecording(bytes.NewReader(b)), n}
		l := load(t, d)
		p, err := l.Append(jbd2.Start{Block: 10, Sequence: 2}, newMaker(l, 4).transaction(5, 2))
		if err == nil {
			err = p.Commit()
		}
		if err == nil {
			_, err = l.Replay()
		}
		if err == nil {
			if n < 13 {
				t.Errorf("only %d writes and syncs", n)
			}
			return
		}
		if !errors.Is(err, errDisk) {
			t.Fatal(err)
		}
	}
}

// lying loses one of the blocks that are written to it.
type lying struct {
	*jbd2.Recording
	size, lost int
}

func (d *lying) WriteAt(b []byte, off int64) (int, error) {
	for at := 0; at < len(b); at += d.size {
		if d.lost--; d.lost == -1 {
			continue
		}
		if _, err := d.Recording.WriteAt(b[at:at+d.size], off+int64(at)); err != nil {
			return at, err
		}
	}
	return len(b), nil
}

// TestReadBack checks that a lost write is noticed before the commit.
func TestReadBack(t *testing.T) {
	for _, k := range kinds {
		b := k.fresh(t)
		for n := 1; n < 12; n++ { // write 0 is the journal's superblock, unchanged
			r := jbd2.NewRecording(bytes.NewReader(b))
			d := &lying{r, int(superOf(t, r).BlockSize), n}
			l := load(t, d)
			if _, err := l.Append(jbd2.Start{Block: 10, Sequence: 2}, newMaker(l, 4).transaction(10, 2)); err == nil {
				t.Errorf("%s: nobody noticed that write %d was lost", k.name, n)
			}
		}
	}
}

// TestRevokeReachesOwnTransaction records why a transaction must not revoke
// a block that it has: a recovery would not write that block.
func TestRevokeReachesOwnTransaction(t *testing.T) {
	b := kinds[0].fresh(t)
	d := jbd2.NewRecording(bytes.NewReader(b))
	l := load(t, d)
	m := newMaker(l, 1)
	txn := m.transaction(2, 0)
	p := add(t, l, jbd2.Start{Block: 10, Sequence: 2}, txn)
	other := m.transaction(1, 0)
	other.Blocks[0].Home = m.first + 299
	other.Revokes = []addr.Block{txn.Blocks[0].Home}
	txn.Revokes = []addr.Block{txn.Blocks[1].Home}
	for i, block := range l.Encode(jbd2.Start{Block: 10, Sequence: 2}, txn) {
		if err := l.WriteJournal(wrap(l, 10, i), block); err != nil {
			t.Fatal(err)
		}
	}
	add(t, l, jbd2.Start{Block: p.End + 1, Sequence: 3}, other)
	newest := scan(t, l).Newest()
	if len(newest) != 1 || newest[0].Home != other.Blocks[0].Home {
		t.Errorf("%+v", newest)
	}
	if !slices.Equal(scan(t, l).Transactions[0].Revokes, txn.Revokes) {
		t.Error("revoke records are not there")
	}
}

// TestReplayStats checks the statistics of a replay.
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
	at := jbd2.Start{Block: 1, Sequence: 4}
	last := block(1)
	last.Revokes = []addr.Block{m.first + 2, m.first + 7}
	for _, txn := range []*jbd2.Transaction{block(1, 2, 3), block(1, 2), last} {
		at = jbd2.Start{Block: add(t, l, at, txn).End, Sequence: at.Sequence + 1}
	}
	stats, err := l.Replay()
	if want := (jbd2.Stats{Transactions: 3, Blocks: 2, Superseded: 2, Revoked: 2, Next: 8}); err != nil || stats != want {
		t.Errorf("%+v instead of %+v, %v", stats, want, err)
	}
}
