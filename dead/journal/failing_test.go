package journal

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
)

// pageSize is the unit that reaches the disk whole or not at all, in bytes. It is also the size of the
// file system's blocks.
const pageSize = addr.PageSize

// hostDisk is an image in a host's page cache. Reads see the cache. A failed sync brings any subset
// of the writes before it to the disk, and forgets the rest: those stay in the cache, and no later
// sync writes them (fsync(2); the kernel marks their pages clean).
type hostDisk struct {
	cache, disk *jbd2.Recording
	waiting     []jbd2.Op // only in the cache, for the next sync
	rng         *rand.Rand
	n           int // reads, writes and syncs so far
	fail        func(n int, what string) bool
}

var errDisk = errors.New("input/output error")

func newHostDisk(base *jbd2.Recording, rng *rand.Rand) *hostDisk {
	return &hostDisk{
		cache: jbd2.NewRecording(base), disk: jbd2.NewRecording(base), rng: rng,
		fail: func(int, string) bool { return false },
	}
}

func (d *hostDisk) fails(what string) bool {
	d.n++
	return d.fail(d.n-1, what)
}

func (d *hostDisk) ReadAt(b []byte, off int64) (int, error) {
	if d.fails("read") {
		return 0, errDisk
	}
	return d.cache.ReadAt(b, off)
}

func (d *hostDisk) WriteAt(b []byte, off int64) (int, error) {
	if d.fails("write") {
		b = b[:d.rng.IntN(len(b)/pageSize+1)*pageSize]
		d.take(b, off)
		return len(b), errDisk
	}
	d.take(b, off)
	return len(b), nil
}

func (d *hostDisk) take(b []byte, off int64) {
	for at := 0; at < len(b); at += pageSize {
		op := jbd2.Op{Offset: off + int64(at), Data: bytes.Clone(b[at : at+pageSize])}
		if _, err := d.cache.WriteAt(op.Data, op.Offset); err != nil {
			panic(err)
		}
		d.waiting = append(d.waiting, op)
	}
}

func (d *hostDisk) Sync() error {
	failed := d.fails("sync")
	d.bring(d.disk, func() bool { return !failed || d.rng.IntN(2) == 0 })
	d.waiting = nil
	if failed {
		return errDisk
	}
	return nil
}

func (d *hostDisk) bring(to *jbd2.Recording, chosen func() bool) {
	for _, op := range d.waiting {
		if chosen() {
			if _, err := to.WriteAt(op.Data, op.Offset); err != nil {
				panic(err)
			}
		}
	}
}

// crashed returns what the disk has if the host dies now.
func (d *hostDisk) crashed() *jbd2.Recording {
	out := jbd2.NewRecording(d.disk)
	d.bring(out, func() bool { return d.rng.IntN(2) == 0 })
	return out
}

// oneFile is memory that has one file's data.
type oneFile struct {
	ram.Memory
	data []byte
}

func (m oneFile) View(pa addr.Phys, n int) ([]byte, error) { return m.data[pa:][:n], nil }

const (
	metaBlock, moreMeta, fileBlock = 7000, 7001, 7100
	fileIno                        = 11 // lost+found, which has an inode
)

// failingCase returns a disk, and what is to be committed to it.
func failingCase(t *testing.T, empty bool) (*jbd2.Recording, *Rescue) {
	t.Helper()
	disk := emptyDisk(t)
	log, scan := openLog(t, disk)
	size := int(log.Super.BlockSize)
	full := func(letter byte) []byte { return bytes.Repeat([]byte{letter}, size) }
	head := log.Super.First
	if !empty {
		first := &jbd2.Transaction{Blocks: []jbd2.Block{{Home: metaBlock, Data: full('a')}, {Home: moreMeta, Data: full('a')}}}
		first.Time = first.Time.AddDate(2020, 0, 0)
		p, err := log.Append(jbd2.Start{Block: log.Super.First, Sequence: scan.Next}, first)
		if err == nil {
			err = p.Commit()
		}
		if err != nil {
			t.Fatal(err)
		}
		head = p.End
		_, scan = openLog(t, disk)
	}
	i, err := log.FS.Inode(fileIno)
	if err != nil {
		t.Fatal(err)
	}
	return disk, &Rescue{
		Journal: &Journal{
			BlockSize: size, Head: addr.Block(head), First: addr.Block(log.Super.First), Last: addr.Block(log.Super.Last),
			Running: &Transaction{ID: uint32(scan.Next), Buffers: []Buffer{{Block: metaBlock, Data: full('n')}, {Block: moreMeta, Data: full('n')}}},
		},
		super: &pagecache.Superblock{BlockSize: uint64(size)},
		mem:   oneFile{data: full('f')},
		data:  []block{{ino: fileIno, disk: fileBlock * int64(size), len: int64(size), used: int64(size)}},
		whole: map[addr.Ino]*pagecache.Inode{fileIno: {Size: int64(i.Size), Generation: i.Generation}},
	}
}

// state returns what a mount makes of the two blocks of metadata: "old", "new", "a mixture", or the
// letters that they begin with.
func state(t *testing.T, disk *jbd2.Recording, old string) string {
	t.Helper()
	after := jbd2.NewRecording(disk)
	log, err := jbd2.Open(after)
	if err == nil && (log.FS.Super.NeedsReplay() || log.Super.Empty()) {
		_, err = log.Replay() // else a mount empties the log unread
	}
	if err != nil {
		t.Fatalf("recover: %v", err)
	}
	got := ""
	for _, b := range []int64{metaBlock, moreMeta} {
		data := make([]byte, log.Super.BlockSize)
		if _, err := after.ReadAt(data, b*int64(len(data))); err != nil {
			t.Fatal(err)
		}
		if len(bytes.Trim(data, string(data[:1]))) > 0 {
			return "a mixture"
		}
		got += string(data[:1])
	}
	switch got {
	case old:
		return "old"
	case "nn":
		return "new"
	}
	return fmt.Sprintf("%q", got)
}

// TestFailingDisk makes the disk fail at each read, write and sync of a rescue, for one to four
// operations or for good, as a host's page cache fails. What the rescue says of its commit is what
// a mount finds, on the disk and in the cache; and a second run of the rescue, on either, commits
// everything and breaks nothing at any instant.
func TestFailingDisk(t *testing.T) {
	for name, old := range map[string]string{"empty log": "\x00\x00", "log in use": "aa"} {
		t.Run(name, func(t *testing.T) {
			base, rescue := failingCase(t, old != "aa")
			counts := make(map[string]int)
			for seed := range uint64(20) {
				for n := 0; ; n++ {
					rng := rand.New(rand.NewPCG(seed, uint64(n)))
					d := newHostDisk(base, rng)
					last := n + []int{0, 1, 2, 3, math.MaxInt32}[seed%5]
					d.fail = func(i int, _ string) bool { return n <= i && i <= last }
					report, err := rescue.Finish(d)
					if err == nil && d.n <= n {
						break // it never failed
					}
					where := fmt.Sprintf("seed %d, operation %d fails: %v", seed, n, err)
					counts[judgeFailed(t, where, old, d, report, err)]++
					again := newHostDisk(jbd2.NewRecording(d.crashed()), rng)
					if rng.IntN(2) == 0 {
						again = newHostDisk(d.disk, rng)
						again.cache = jbd2.NewRecording(d.cache)
					}
					finishAgain(t, where, old, rescue, again)
					if t.Failed() {
						return
					}
				}
			}
			t.Log(counts)
			for _, want := range []string{"whole", "refused", "committed", "uncertain"} {
				if counts[want] == 0 {
					t.Errorf("never %s", want)
				}
			}
		})
	}
}

// judgeFailed compares what a rescue says with what a mount finds.
func judgeFailed(t *testing.T, where, old string, d *hostDisk, report *Report, err error) string {
	t.Helper()
	says, may := "refused", []string{"old"}
	var committed *CommittedError
	switch {
	case err == nil:
		says, may = "whole", []string{"new"}
	case !errors.Is(err, errDisk):
		t.Errorf("%s: it is not the disk's error", where)
	case errors.As(err, &committed) && committed.Uncertain:
		says, may = "uncertain", []string{"old", "new"}
	case committed != nil:
		says, may = "committed", []string{"new"}
	}
	for range 2 {
		for view, disk := range map[string]*jbd2.Recording{"cache": d.cache, "disk": d.crashed()} {
			if got := state(t, disk, old); got != may[0] && got != may[len(may)-1] {
				t.Errorf("%s: a mount finds %s in the %s, and it says %s", where, got, view, says)
			}
		}
	}
	_, written := report.Written[fileIno]
	if got := make([]byte, 1); written {
		if _, err := d.disk.ReadAt(got, fileBlock*pageSize); err != nil || got[0] != 'f' {
			t.Errorf("%s: a file is written, and not on the disk", where)
		}
	}
	if written != (says == "whole" || says == "committed") && says != "refused" {
		t.Errorf("%s: it says %s, and of the file's being written %v", where, says, written)
	}
	return says
}

// finishAgain carries a rescue out once more, on a disk that no longer fails, and checks what is left
// if the host dies at any instant in between.
func finishAgain(t *testing.T, where, old string, rescue *Rescue, d *hostDisk) {
	t.Helper()
	was := state(t, d.cache, old)
	d.fail = func(n int, what string) bool {
		if what != "read" {
			if got := state(t, d.crashed(), old); got != "new" && got != "old" {
				t.Errorf("%s; again, from %s: a crash before %s %d leaves %s", where, was, what, n, got)
			}
		}
		return false
	}
	report, err := rescue.Finish(d)
	if err != nil {
		t.Errorf("%s; again: %v", where, err)
	} else if got := state(t, d.disk, old); got != "new" {
		t.Errorf("%s; again, which was %v: %s", where, report.Case, got)
	}
}
