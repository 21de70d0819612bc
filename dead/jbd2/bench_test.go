package jbd2_test

import (
	"os"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/jbd2"
)

// unsynced is a file whose syncs are counted, and not done: their duration depends on
// the disk.
type unsynced struct {
	*os.File
	syncs int
}

func (u *unsynced) Sync() error {
	u.syncs++
	return nil
}

// BenchmarkLastCommit appends a transaction of 1,000 blocks to the log, commits
// and replays it.
func BenchmarkLastCommit(b *testing.B) {
	const count = 1000
	k := kind{"bench", []string{"-J", "size=16", "-t", "ext4", "-b", "4096"}, 0, jbd2.IncompatRevoke | jbd2.IncompatCsumV3 | jbd2.Incompat64Bit, 16}
	f, err := os.CreateTemp(b.TempDir(), "disk")
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(256 << 20); err != nil {
		b.Fatal(err)
	}
	run(b, "mke2fs", append(append([]string{"-qF"}, k.mkfs...), f.Name())...)
	d := &unsynced{File: f}
	if err := jbd2.SetFeatures(d, k.compat, k.incompat); err != nil {
		b.Fatal(err)
	}
	l := load(b, d)
	m := newMaker(l, 1)
	m.count, m.first = count, addr.Block(l.FS.Super.Blocks)-3*count
	txn := m.transaction(count, 0)
	for i := range txn.Blocks {
		txn.Blocks[i].Home = m.first + addr.Block(2*i) // metadata is not contiguous
	}
	b.SetBytes(int64(count) * int64(l.Super.BlockSize))
	d.syncs = 0
	for b.Loop() {
		l := load(b, d)
		s := scan(b, l)
		p, err := l.Append(jbd2.Start{Block: s.End, Sequence: s.Next + 1}, txn)
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Commit(); err != nil {
			b.Fatal(err)
		}
		if _, err := l.Replay(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(d.syncs)/float64(b.N), "syncs/op")
}
