package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/jbd2"
)

// TestConsistentQuotas changes a block of a quota file and not its inode, with nothing in flight. The change is accepted
// if memory says that the file has quotas (usrjquota=); otherwise the block is one that nobody claims.
func TestConsistentQuotas(t *testing.T) {
	const n = 12
	from := t.TempDir()
	if err := os.WriteFile(filepath.Join(from, "aquota.user"), bytes.Repeat([]byte{'u'}, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	disk := emptyDisk(t, "-d", from)
	log, _ := openLog(t, disk)
	g, err := log.FS.Group(0)
	if err != nil {
		t.Fatal(err)
	}
	table, err := log.FS.Block(g.InodeTable)
	if err != nil {
		t.Fatal(err)
	}
	raw := table[(n-1)*int(log.FS.Super.InodeSize):][:log.FS.Super.InodeSize]
	binary.LittleEndian.PutUint32(raw[0x20:], binary.LittleEndian.Uint32(raw[0x20:])|0x90) // EXT4_IMMUTABLE_FL, EXT4_NOATIME_FL
	log.FS.Super.SealInode(n, raw)
	if _, err := disk.WriteAt(table, int64(g.InodeTable)*4096); err != nil {
		t.Fatal(err)
	}
	i, err := log.FS.Inode(n)
	if err != nil {
		t.Fatal(err)
	}
	at, err := log.FS.Map(i, 0)
	if err != nil {
		t.Fatal(err)
	}
	change := &jbd2.Transaction{Blocks: []jbd2.Block{{Home: at.Physical, Data: bytes.Repeat([]byte{'q'}, 4096)}}}
	for _, quota := range []bool{true, false} {
		f := &finisher{disk: disk, report: &Report{}, remembered: audit.Memory{
			Inodes: func() ([]audit.Known, error) { return []audit.Known{{Ino: addr.Ino(n), Quota: quota}}, nil },
		}}
		if err := f.consistent(change); (err == nil) != quota || err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("quotas %v: %v", quota, err)
		}
	}
}

// TestExceptPlaced checks that memory is not asked for the inode of a placed file, whose block has what we wrote there.
func TestExceptPlaced(t *testing.T) {
	f := finisher{
		placed:     placed{files: []addr.Ino{12, 14}},
		remembered: audit.Memory{Inode: func(n addr.Ino) ([]byte, int64, bool) { return nil, int64(n), n != 13 }},
	}
	m := f.exceptPlaced()
	for n, want := range map[addr.Ino]bool{11: true, 12: false, 13: false, 14: false, 15: true} {
		if _, size, known := m.Inode(n); known != want || known && size != int64(n) {
			t.Errorf("inode %d: %d, %v", n, size, known)
		}
	}
}
