package journal

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
)

// emptyDisk makes a file system with a journal; more are further arguments of mke2fs.
func emptyDisk(t *testing.T, more ...string) *jbd2.Recording {
	t.Helper()
	if _, err := exec.LookPath("mke2fs"); err != nil {
		t.Skipf("%v; run scripts/setup.sh", err)
	}
	path := filepath.Join(t.TempDir(), "image")
	if out, err := exec.Command("mke2fs", append(append([]string{"-q", "-t", "ext4", "-b", "4096"}, more...), path, "32M")...).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return jbd2.NewRecording(bytes.NewReader(b))
}

// openLog opens the log of a disk.
func openLog(t *testing.T, disk *jbd2.Recording) (*jbd2.Log, *jbd2.Scan) {
	t.Helper()
	log, err := jbd2.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	scan, err := log.Scan()
	if err != nil {
		t.Fatal(err)
	}
	return log, scan
}

// TestFinished checks that a transaction is recognized in the log and once it is written home, also
// if it has marked the file system for a check, and that no other transaction is.
func TestFinished(t *testing.T) {
	disk := emptyDisk(t)
	log, scan := openLog(t, disk)
	block := func(home addr.Block, letter byte) jbd2.Block {
		return jbd2.Block{Home: home, Data: bytes.Repeat([]byte{letter}, int(log.Super.BlockSize))}
	}
	in := &jbd2.Transaction{Time: time.Now(), Blocks: []jbd2.Block{block(7000, 'a'), block(7001, 'b')}, Revokes: []addr.Block{7002}}
	marked := &jbd2.Transaction{Time: in.Time, Blocks: append([]jbd2.Block(nil), in.Blocks...), Revokes: in.Revokes}
	c := &change{txn: marked, fs: log.FS, before: disk, blocks: make(map[addr.Block][]byte)}
	for range 2 { // the superblock may be in the transaction already
		if err := c.markUnclean(); err != nil {
			t.Fatal(err)
		}
	}
	home, offset := log.FS.Super.Location()
	if len(marked.Blocks) != len(in.Blocks)+1 || c.blocks[home] == nil {
		t.Fatalf("%d blocks are marked", len(marked.Blocks))
	}
	if s, err := ext4.ParseSuper(c.blocks[home][offset:][:ext4.SuperSize]); err != nil || s.State&ext4.StateValid != 0 {
		t.Errorf("%+v, %v", s, err)
	}
	pending, err := log.Append(jbd2.Start{Block: log.Super.First, Sequence: scan.Next}, marked)
	if err == nil {
		err = pending.Commit()
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, where := range []string{"in the log", "in its places"} {
		log, scan := openLog(t, disk)
		for name, tc := range map[string]struct {
			t    *jbd2.Transaction
			want bool
		}{
			"as in memory":   {in, true},
			"as written":     {marked, true},
			"another byte":   {&jbd2.Transaction{Blocks: []jbd2.Block{block(7000, 'a'), block(7001, 'c')}, Revokes: in.Revokes}, false},
			"another block":  {&jbd2.Transaction{Blocks: []jbd2.Block{block(7000, 'a'), block(7003, 'b')}, Revokes: in.Revokes}, false},
			"one more block": {&jbd2.Transaction{Blocks: append([]jbd2.Block{block(7003, 'x')}, in.Blocks...), Revokes: in.Revokes}, false},
		} {
			if got, err := finished(log, scan, tc.t); got != tc.want || err != nil {
				t.Errorf("%s, %s: %v, %v", where, name, got, err)
			}
		}
		if _, err := log.Replay(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestReplaceRevoked checks that no block is both written and revoked.
func TestReplaceRevoked(t *testing.T) {
	c := &change{txn: &jbd2.Transaction{Revokes: []addr.Block{5}}, blocks: make(map[addr.Block][]byte)}
	if err := c.replace(5, nil); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
}
