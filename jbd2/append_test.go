package jbd2_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"understudy/addr"
	"understudy/jbd2"
)

// image makes an empty file system.
func image(t testing.TB, size int64, args ...string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", append(append([]string{"-qF"}, args...), path)...).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSmoke(t *testing.T) {
	b := image(t, 64<<20, "-t", "ext4")
	d := jbd2.NewRecording(bytes.NewReader(b))
	l, err := jbd2.Open(d)
	if err != nil {
		t.Fatal(err)
	}
	scan, err := l.Scan()
	t.Logf("%+v %+v %v", l.Super, scan, err)
	p, err := l.Append(jbd2.Place{Block: 100, Sequence: scan.Next + 1}, &jbd2.Transaction{
		Blocks:  []jbd2.Block{{Home: addr.Block(9000), Data: bytes.Repeat([]byte{0xc0, 0x3b, 0x39, 0x98}, int(l.Super.BlockSize)/4)}},
		Revokes: []addr.Block{9001},
		Time:    time.Now(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	scan, err = l.Scan()
	t.Logf("%+v %v", scan, err)
	stats, err := l.Replay()
	t.Logf("%+v %v", stats, err)
	got := make([]byte, 4)
	d.ReadAt(got, 9000*int64(l.Super.BlockSize))
	t.Logf("%x", got)
	for i, op := range d.Ops() {
		t.Log(i, op.Offset, len(op.Data))
	}
}
