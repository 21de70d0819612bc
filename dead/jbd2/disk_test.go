package jbd2_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
)

// kind is a kind of journal.
type kind struct {
	name             string
	mkfs             []string
	compat, incompat uint32 // features of the journal
	tag              int    // size of a tag, in bytes
}

// kinds are all kinds of journals.
var kinds = []kind{
	{"none", []string{"-t", "ext3", "-b", "1024"}, 0, jbd2.IncompatRevoke, 8},
	{"none-64bit", []string{"-t", "ext4", "-b", "1024", "-O", "^metadata_csum"}, 0, jbd2.IncompatRevoke | jbd2.Incompat64Bit, 12},
	{"v1", []string{"-t", "ext4", "-b", "1024", "-O", "^metadata_csum,^64bit"}, jbd2.CompatChecksum, jbd2.IncompatRevoke, 8},
	{"v2", []string{"-t", "ext4", "-b", "1024", "-O", "^64bit"}, 0, jbd2.IncompatRevoke | jbd2.IncompatCsumV2, 10},
	{"v2-64bit", []string{"-t", "ext4", "-b", "4096"}, 0, jbd2.IncompatRevoke | jbd2.IncompatCsumV2 | jbd2.Incompat64Bit, 14},
	{"v3", []string{"-t", "ext4", "-b", "1024", "-O", "^64bit"}, 0, jbd2.IncompatRevoke | jbd2.IncompatCsumV3, 16},
	{"v3-64bit", []string{"-t", "ext4", "-b", "4096"}, 0, jbd2.IncompatRevoke | jbd2.IncompatCsumV3 | jbd2.Incompat64Bit, 16},
	{"v3-fast", []string{"-t", "ext4", "-b", "1024", "-J", "size=2", "-O", "fast_commit"}, 0, jbd2.IncompatRevoke | jbd2.IncompatCsumV3 | jbd2.IncompatFastCommit, 16},
	{"v3-async", []string{"-t", "ext4", "-b", "2048"}, 0, jbd2.IncompatRevoke | jbd2.IncompatCsumV3 | jbd2.IncompatAsyncCommit, 16},
	{"v1-async", []string{"-t", "ext4", "-b", "1024", "-O", "^metadata_csum"}, jbd2.CompatChecksum, jbd2.IncompatRevoke | jbd2.IncompatAsyncCommit, 8},
}

// mkfs makes an empty file system and returns its bytes.
func mkfs(t testing.TB, args ...string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 12<<20); err != nil {
		t.Fatal(err)
	}
	run(t, "mke2fs", append(append([]string{"-qF"}, args...), path)...)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// run runs a program of e2fsprogs.
func run(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	out, err := cmd.CombinedOutput()
	if _, missing := exec.LookPath(name); missing != nil {
		t.Skip(missing, "; run scripts/setup.sh")
	}
	if err != nil && name != "e2fsck" {
		t.Fatalf("%v: %v: %s", cmd, err, out)
	}
	return out
}

// freshOnes are the file systems that fresh has already made.
var freshOnes sync.Map

// fresh makes an empty file system whose journal, of at least 1024 blocks, has
// the features of a kind. The result must not be changed.
func (k kind) fresh(t testing.TB) []byte {
	t.Helper()
	if b, ok := freshOnes.Load(k.name); ok {
		return b.([]byte)
	}
	args := k.mkfs
	if !slices.Contains(args, "-J") {
		args = append([]string{"-J", "size=" + map[string]string{"1024": "1", "2048": "2", "4096": "4"}[args[3]]}, args...)
	}
	b := mkfs(t, args...)
	d := jbd2.NewRecording(bytes.NewReader(b))
	if err := jbd2.SetFeatures(d, k.compat, k.incompat); err != nil {
		t.Fatal(err)
	}
	flatten(b, d)
	freshOnes.Store(k.name, b)
	return b
}

// flatten writes the changes of a recording into the bytes below it.
func flatten(b []byte, r *jbd2.Recording) {
	for at, piece := range r.Changed() {
		copy(b[at:], piece)
	}
}

// load opens a log on a recording.
func load(t testing.TB, d jbd2.Disk) *jbd2.Log {
	t.Helper()
	l, err := jbd2.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func scan(t testing.TB, l *jbd2.Log) *jbd2.Scan {
	t.Helper()
	s, err := l.Scan()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// next is where the next transaction goes.
func next(s *jbd2.Scan) jbd2.Start { return jbd2.Start{Block: s.End, Sequence: s.Next} }

// maker makes transactions of blocks at the end of a file system, where there is
// nothing yet.
type maker struct {
	random *rand.Rand
	block  uint32     // size, in bytes
	first  addr.Block // the first block that transactions may have
	count  int
	clock  int64
}

func newMaker(l *jbd2.Log, seed uint64) *maker {
	const count = 300
	return &maker{
		random: rand.New(rand.NewPCG(seed, 1)), block: l.Super.BlockSize,
		first: addr.Block(l.FS.Super.Blocks) - count, count: count, clock: 1_700_000_000,
	}
}

// transaction makes a transaction of n blocks with random content, with some revokes of
// other blocks. Some blocks begin with the journal's magic.
func (m *maker) transaction(n, revokes int) *jbd2.Transaction {
	m.clock++
	t := &jbd2.Transaction{Time: time.Unix(m.clock, 5)}
	for i, home := range m.random.Perm(m.count) {
		switch {
		case i < n:
			data := make([]byte, m.block)
			for at := range data {
				data[at] = byte(m.random.Uint32())
			}
			if m.random.IntN(4) == 0 {
				copy(data, []byte{0xc0, 0x3b, 0x39, 0x98})
			}
			t.Blocks = append(t.Blocks, jbd2.Block{Home: m.first + addr.Block(home), Data: data})
		case i < n+revokes:
			t.Revokes = append(t.Revokes, m.first+addr.Block(home))
		}
	}
	return t
}

// add appends a transaction and commits it.
func add(t testing.TB, l *jbd2.Log, at jbd2.Start, txn *jbd2.Transaction) *jbd2.Pending {
	t.Helper()
	p, err := l.Append(at, txn)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	return p
}

// model is the expected content of blocks after a replay of transactions.
type model map[addr.Block][]byte

// apply applies a transaction on top of those before. Revoked blocks have no known
// content.
func (m model) apply(t *jbd2.Transaction) {
	for _, r := range t.Revokes {
		delete(m, r)
	}
	for _, b := range t.Blocks {
		m[b.Home] = b.Data
	}
}

// check checks that the blocks of a disk are as in the model.
func (m model) check(t testing.TB, d io.ReaderAt, size uint32) {
	t.Helper()
	for home, want := range m {
		got := make([]byte, size)
		if _, err := d.ReadAt(got, int64(home)*int64(size)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("block %d begins with %x instead of %x", home, got[:8], want[:8])
		}
	}
}

// outside returns the blocks in which two recordings on the same bytes differ, except for
// those of the journal itself.
func outside(t testing.TB, l *jbd2.Log, a, b *jbd2.Recording) []addr.Block {
	t.Helper()
	size := int64(l.Super.BlockSize)
	touched := make(map[addr.Block]bool)
	for _, r := range []*jbd2.Recording{a, b} {
		for at, piece := range r.Changed() {
			for block := at / size; block*size < at+int64(len(piece)); block++ {
				touched[addr.Block(block)] = true
			}
		}
	}
	var found []addr.Block
	x, y := make([]byte, size), make([]byte, size)
	for block := range touched {
		if l.Contains(block) {
			continue
		}
		for _, r := range []struct {
			d *jbd2.Recording
			b []byte
		}{{a, x}, {b, y}} {
			if _, err := r.d.ReadAt(r.b, int64(block)*size); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(x, y) {
			found = append(found, block)
		}
	}
	slices.Sort(found)
	return found
}

// save writes a recording on some bytes to a file.
func save(t testing.TB, b []byte, r *jbd2.Recording) string {
	t.Helper()
	b = slices.Clone(b)
	flatten(b, r)
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// superOf returns the superblock of a disk.
func superOf(t testing.TB, d io.ReaderAt) *ext4.Super {
	t.Helper()
	b, err := ext4.ReadSuper(d)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ext4.ParseSuper(b)
	if err != nil {
		t.Fatal(err)
	}
	return &s
}

// describe summarizes a scan.
func describe(l *jbd2.Log, s *jbd2.Scan) string {
	if s == nil {
		return "nothing"
	}
	blocks, revokes, escaped := 0, 0, 0
	for _, t := range s.Transactions {
		blocks += len(t.Blocks)
		revokes += len(t.Revokes)
		for _, b := range t.Blocks {
			if b.Escaped {
				escaped++
			}
		}
	}
	return fmt.Sprintf("checksum %v, tags of %d, fast %v: %d transactions from %d to %d, %d blocks, %d escaped, %d revokes, [%d, %d) of [%d, %d), empty %v, partial %v, fast %+v",
		l.Super.Checksum, l.Super.TagSize(), l.Super.FastCommit, len(s.Transactions), l.Super.Sequence, s.Next, blocks, escaped, revokes,
		s.Start, s.End, l.Super.First, l.Super.Last, s.Empty, s.Partial, s.Fast)
}
