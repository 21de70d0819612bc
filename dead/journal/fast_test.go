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

// letters is a block of a transaction, filled with one letter.
func letters(home addr.Block, letter byte) jbd2.Block {
	return jbd2.Block{Home: home, Data: bytes.Repeat([]byte{letter}, 4096)}
}

// fastDisk has transaction 6 at the end of its log, and a fast commit for transaction 7.
func fastDisk(t *testing.T) *jbd2.Recording {
	t.Helper()
	disk := emptyDisk(t, "-J", "size=8", "-O", "fast_commit,^metadata_csum")
	log, _ := openLog(t, disk)
	at, err := log.Where(0)
	if err != nil {
		t.Fatal(err)
	}
	super, err := log.FS.Block(at)
	if err != nil {
		t.Fatal(err)
	}
	binary.BigEndian.PutUint32(super[0x28:], 0x20) // JBD2_FEATURE_INCOMPAT_FAST_COMMIT, as a mount sets it
	if _, err := disk.WriteAt(super, int64(at)*4096); err != nil {
		t.Fatal(err)
	}
	log, _ = openLog(t, disk)
	p, err := log.Append(jbd2.Start{Block: log.Super.Last - 20, Sequence: 6}, &jbd2.Transaction{Blocks: []jbd2.Block{letters(7000, 'a')}, Time: time.Now()})
	if err == nil {
		err = p.Commit()
	}
	if err != nil {
		t.Fatal(err)
	}
	fast := make([]byte, 4096)
	put, half := binary.LittleEndian.PutUint32, binary.LittleEndian.PutUint16
	half(fast, 9) // EXT4_FC_TAG_HEAD
	half(fast[2:], 8)
	put(fast[8:], 7)
	half(fast[12:], 8) // EXT4_FC_TAG_TAIL
	half(fast[14:], 4096-16)
	put(fast[16:], 7)
	put(fast[20:], ext4.CRC32C(0, fast[:20]))
	if at, err = log.Where(log.Super.FastFirst); err != nil {
		t.Fatal(err)
	}
	if _, err := disk.WriteAt(fast, int64(at)*4096); err != nil {
		t.Fatal(err)
	}
	return disk
}

// TestFastCommits finishes a commit part of which is in fast commits, in a log that has no room after its end: memory has
// more than they say. They stay until it is committed, and no file gets a place, which might be free only without them.
func TestFastCommits(t *testing.T) {
	disk := fastDisk(t)
	log, scan := openLog(t, disk)
	if scan.Next != 7 || scan.Fast.Tags == 0 {
		t.Fatalf("%+v", scan)
	}
	_, before, err := recoverOn(disk, (*jbd2.Log).ForgetFreed)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4096)
	if _, err := before.ReadAt(got, 7000*4096); err != nil || !bytes.Equal(got, letters(7000, 'a').Data) {
		t.Errorf("block 7000 is %q.., %v", got[:4], err)
	}
	j := &Journal{First: addr.Block(log.Super.First), Head: addr.Block(scan.End), Running: &Transaction{ID: 7}}
	_, at, err := j.fit(scan)
	if err != nil {
		t.Fatal(err)
	}
	f := &finisher{Rescue: &Rescue{Journal: j}, disk: disk, report: &Report{Case: Running}}
	if f.place(log, scan, nil, at); !errors.Is(f.report.Placement.Err, jbd2.ErrFastCommits) {
		t.Errorf("places: %v", f.report.Placement.Err)
	}
	last := &jbd2.Transaction{Time: time.Now()}
	for n := range addr.Block(40) {
		last.Blocks = append(last.Blocks, letters(7100+n, 'b'))
	}
	room := jbd2.NewRecording(disk) // as left by a rescue that made room, and died
	made, _ := openLog(t, room)
	if _, _, err := made.MakeRoom(); err != nil {
		t.Fatal(err)
	}
	for n, disk := range []*jbd2.Recording{room, disk} {
		name := []string{"again", "at once"}[n]
		log, scan := openLog(t, disk)
		which, at, err := j.fit(scan)
		if err != nil || which != Running || scan.Fast.Tags == 0 {
			t.Errorf("%s: %v, %v, %+v", name, which, err, scan)
			continue
		}
		f := &finisher{Rescue: f.Rescue, disk: disk, report: &Report{}}
		if err := f.commit(log, at, last); err != nil || !f.committed {
			t.Errorf("%s: %v", name, err)
		}
		if log, scan := openLog(t, disk); scan.Next != 8 || scan.Fast.Tags != 0 {
			t.Errorf("%s: %+v", name, scan)
		} else if _, err := log.Replay(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for home, letter := range map[addr.Block]byte{7000: 'a', 7139: 'b'} {
			if _, err := disk.ReadAt(got, int64(home)*4096); err != nil || !bytes.Equal(got, letters(home, letter).Data) {
				t.Errorf("%s: block %d is %q.., %v", name, home, got[:4], err)
			}
		}
	}
}
