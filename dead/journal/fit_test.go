package journal

import (
	"errors"
	"testing"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/jbd2"
)

// TestFit finds out how logs, as the crash or an interrupted rescue left them, fit to memory.
func TestFit(t *testing.T) {
	c, n := &Transaction{ID: 10, LogStart: 800}, &Transaction{ID: 11}
	logged := make([]jbd2.Logged, 1)
	for name, tc := range map[string]struct {
		committing, running *Transaction
		scan                jbd2.Scan
		want                Case
		at                  jbd2.TID // 0: the log does not fit
	}{
		"committing":                            {c, n, jbd2.Scan{Transactions: logged, Next: 10, End: 800}, Committing, 10},
		"committing, at another block":          {c, n, jbd2.Scan{Transactions: logged, Next: 10, End: 801}, Nothing, 0},
		"committing, room made":                 {c, n, jbd2.Scan{Empty: true, Next: 11, End: 1}, Committing, 11},
		"committing, room made, fast commits":   {c, n, jbd2.Scan{Next: 10, End: 1}, Committing, 10},
		"committed":                             {c, n, jbd2.Scan{Transactions: logged, Next: 11, End: 900}, Committed, 11},
		"committed, at another block":           {c, n, jbd2.Scan{Transactions: logged, Next: 11, End: 1}, Nothing, 0},
		"committed, room made":                  {c, n, jbd2.Scan{Empty: true, Next: 12, End: 1}, Committed, 12},
		"committed, room made, fast commits":    {c, n, jbd2.Scan{Next: 11, End: 1}, Committed, 11},
		"committed, none running":               {c, nil, jbd2.Scan{Transactions: logged, Next: 11, End: 900}, Nothing, 11},
		"committed, none running, replayed":     {c, nil, jbd2.Scan{Empty: true, Next: 12, End: 1}, Nothing, 12},
		"running":                               {nil, n, jbd2.Scan{Transactions: logged, Next: 11, End: 900}, Running, 11},
		"running, room made":                    {nil, n, jbd2.Scan{Empty: true, Next: 12, End: 1}, Running, 12},
		"running, committed by something else":  {nil, n, jbd2.Scan{Empty: true, Next: 13, End: 1}, Nothing, 0},
		"running, one more, fast commits":       {nil, n, jbd2.Scan{Next: 12, End: 1}, Nothing, 0},
		"both, committed by something else":     {c, n, jbd2.Scan{Empty: true, Next: 13, End: 1}, Nothing, 0},
		"both, too far ahead, fast commits":     {c, n, jbd2.Scan{Next: 12, End: 1}, Nothing, 0},
		"committed, fast commits, at a block":   {c, n, jbd2.Scan{Next: 11, End: 2}, Nothing, 0},
		"a mounted log that is empty":           {nil, n, jbd2.Scan{Empty: true, Next: 10, End: 1}, Running, 11},
		"a log of long ago, without its middle": {c, n, jbd2.Scan{Empty: true, Next: 8, End: 1}, Nothing, 0},
	} {
		j := &Journal{Head: 900, First: 1, Last: 1024, Committed: 9, Committing: tc.committing, Running: tc.running}
		got, at, err := j.fit(&tc.scan)
		if tc.at == 0 {
			if !errors.Is(err, ErrLog) {
				t.Errorf("%s: %v, %v", name, got, err)
			}
		} else if err != nil || got != tc.want || at != (jbd2.Start{Block: tc.scan.End, Sequence: tc.at}) {
			t.Errorf("%s: %v, %+v, %v", name, got, at, err)
		}
	}
}

// committedDisk has transaction 10 in its log, as memory has it, and memory has transaction 11, too.
func committedDisk(t *testing.T, mark jbd2.Mark, blocks ...jbd2.Block) (*jbd2.Recording, *finisher) {
	t.Helper()
	disk := emptyDisk(t)
	log, _ := openLog(t, disk)
	p, err := log.Append(jbd2.Start{Block: log.Super.First, Sequence: 10}, &jbd2.Transaction{Blocks: blocks, Time: time.Now(), Mark: mark})
	if err == nil {
		err = p.Commit()
	}
	if err != nil {
		t.Fatal(err)
	}
	log, scan := openLog(t, disk)
	head := addr.Block(scan.End)
	a, b := letters(7000, 'a'), letters(7001, 'b')
	j := &Journal{First: addr.Block(log.Super.First), Last: addr.Block(log.Super.Last), Head: head, Committed: 9,
		Committing: &Transaction{ID: 10, LogStart: head, Buffers: []Buffer{{Block: a.Home, Data: a.Data}}},
		Running:    &Transaction{ID: 11, Buffers: []Buffer{{Block: b.Home, Data: b.Data}}}}
	return disk, &finisher{Rescue: &Rescue{Journal: j}, disk: disk, report: &Report{}}
}

// TestMadeRoomAgain goes on after a rescue that made room in the log behind a transaction which the dead kernel had
// committed, and died.
func TestMadeRoomAgain(t *testing.T) {
	disk, f := committedDisk(t, jbd2.Mark{}, letters(7000, 'a'))
	log, _ := openLog(t, disk)
	if _, _, err := log.MakeRoom(); err != nil {
		t.Fatal(err)
	}
	log, scan := openLog(t, disk)
	txn, at, err := f.transaction(log, scan)
	if err != nil || txn == nil || f.report.Case != Committed {
		t.Fatalf("%v: %+v, %v", f.report.Case, txn, err)
	}
	if err := f.commit(log, at, txn); err != nil {
		t.Fatal(err)
	}
	for _, where := range []string{"in the log", "in its places"} {
		log, scan := openLog(t, disk)
		if txn, _, err := f.transaction(log, scan); err != nil || txn != nil || f.report.Case != Finished {
			t.Errorf("%s: %v: %+v, %v", where, f.report.Case, txn, err)
		}
		if _, err := log.Replay(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFinishedNotMadeRoom does not take a log that a finished rescue emptied for one in which only room was made: the
// rescue had changed what memory has, and put its mark into the log.
func TestFinishedNotMadeRoom(t *testing.T) {
	disk, f := committedDisk(t, jbd2.Mark{}, letters(7000, 'a'))
	log, scan := openLog(t, disk)
	if _, _, err := f.transaction(log, scan); err != nil {
		t.Fatal(err)
	}
	disk, again := committedDisk(t, f.mark(true), letters(7000, 'z'), letters(7001, 'b'))
	again.Journal.Head, again.Journal.Committing.LogStart = f.Journal.Head, f.Journal.Head
	log, _ = openLog(t, disk)
	if _, err := log.Replay(); err != nil {
		t.Fatal(err)
	}
	log, scan = openLog(t, disk)
	if txn, _, err := again.transaction(log, scan); err != nil || txn != nil || again.report.Case != Finished || !again.proven {
		t.Errorf("%v: %+v, %v", again.report.Case, txn, err)
	}
}
