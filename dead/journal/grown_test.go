package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
)

// growing returns a disk of 10240 blocks with a file system of 8192 blocks in four groups, and the buffers in a kernel's
// memory that give it a fifth group: the superblock, the descriptors, and the block bitmap of the new group.
func growing(t *testing.T) (*jbd2.Recording, *jbd2.Log, *jbd2.Scan, []Buffer) {
	t.Helper()
	disk := emptyDisk(t, "-g", "2048", "-O", "^resize_inode")
	if _, err := disk.WriteAt(make([]byte, 2048*4096), 8192*4096); err != nil {
		t.Fatal(err)
	}
	log, scan := openLog(t, disk)
	super, err := log.FS.Block(0)
	if err != nil {
		t.Fatal(err)
	}
	descriptors, err := log.FS.Block(1)
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(super[1024:], 5*log.FS.Super.InodesPerGroup)
	binary.LittleEndian.PutUint32(super[1024+4:], 10240)
	binary.LittleEndian.PutUint32(super[1024+0x3fc:], ext4.CRC32C(^uint32(0), super[1024:][:0x3fc]))
	binary.LittleEndian.PutUint32(descriptors[4*int(log.FS.Super.DescSize):], 8193)
	return disk, log, scan, []Buffer{{Block: 0, Data: super}, {Block: 1, Data: descriptors}, {Block: 8193, Data: letters(8193, 'm').Data}}
}

// TestGrown commits a transaction that makes a file system larger, if nothing was in flight, and places no file then.
func TestGrown(t *testing.T) {
	disk, log, scan, buffers := growing(t)
	j := &Journal{First: addr.Block(log.Super.First), Head: addr.Block(scan.End), Running: &Transaction{ID: uint32(scan.Next), Buffers: buffers}}
	txn, err := j.merge(log, scan, []addr.Block{8200})
	if err != nil {
		t.Fatal(err)
	}
	if done, err := finished(log, scan, txn); done || err != nil {
		t.Errorf("finished: %v, %v", done, err)
	}
	f := &finisher{Rescue: &Rescue{Journal: j}, disk: disk, report: &Report{}}
	if err := f.consistent(txn); err != nil {
		t.Error(err)
	}
	c, err := f.change(txn)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.prove(c); !errors.Is(err, errGrows) {
		t.Errorf("with operations in flight: %v", err)
	}
	if _, err := f.placeFiles(log, scan, txn); !errors.Is(err, errGrows) {
		t.Errorf("places: %v", err)
	}
	txn.Time = time.Now()
	if err := f.commit(log, jbd2.Start{Block: scan.End, Sequence: scan.Next}, txn); err != nil {
		t.Fatal(err)
	}
	// The next transaction in the log has no superblock.
	last, scan := openLog(t, disk)
	j.Running = &Transaction{Buffers: []Buffer{{Block: 8193, Data: letters(8193, 'n').Data}}}
	if txn, err = j.merge(last, scan, nil); err != nil {
		t.Fatal(err)
	}
	txn.Time = time.Now()
	if err := f.commit(last, jbd2.Start{Block: scan.End, Sequence: scan.Next}, txn); err != nil {
		t.Fatal(err)
	}
	if _, err := last.Replay(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4096)
	if _, err := disk.ReadAt(got, 8193*4096); err != nil || last.FS.Super.Blocks != 10240 || !bytes.Equal(got, letters(0, 'n').Data) {
		t.Errorf("%d blocks, %q.., %v", last.FS.Super.Blocks, got[:4], err)
	}
}

// TestNotGrown checks that a block beyond the end of a file system is refused, unless the superblock in the transaction
// says that the file system has grown, and the disk has room for that.
func TestNotGrown(t *testing.T) {
	for name, spoil := range map[string]func(b []Buffer) []Buffer{
		"no superblock":                 func(b []Buffer) []Buffer { return b[1:] },
		"behind the end of it":          func(b []Buffer) []Buffer { b[2].Block = 10240; return b },
		"a superblock without its sum":  func(b []Buffer) []Buffer { b[0].Data[1024+0x3fc]++; return b },
		"a superblock without its size": func(b []Buffer) []Buffer { b[0].Data[1024+0x18]++; return b },
		"a disk that is too small": func(b []Buffer) []Buffer {
			binary.LittleEndian.PutUint32(b[0].Data[1024+4:], 10241)
			binary.LittleEndian.PutUint32(b[0].Data[1024+0x3fc:], ext4.CRC32C(^uint32(0), b[0].Data[1024:][:0x3fc]))
			return b
		},
	} {
		_, log, scan, buffers := growing(t)
		j := &Journal{Running: &Transaction{Buffers: spoil(buffers)}}
		if _, err := j.merge(log, scan, nil); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
