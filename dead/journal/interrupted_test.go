package journal_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/internal/lab/fixture"
)

// recovered returns a disk after an ordinary crash recovery.
func recovered(t *testing.T, disk *jbd2.Recording) *jbd2.Recording {
	t.Helper()
	out := jbd2.NewRecording(disk)
	log, err := jbd2.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	if log.Super.Empty() {
		return out
	}
	if _, err := log.Replay(); err != nil {
		t.Fatalf("recover: %v", err)
	}
	return out
}

// TestInterrupted cuts a rescue at every one of its writes, also with the writes that were not
// synced lost or there in any mixture. An ordinary recovery then leaves the metadata either as
// after the crash, or with all of the last commit; and a second run of the rescue
// gives all of the commit. With placement it also gives all of the files; with an
// operation in flight, everything that is to be mended.
func TestInterrupted(t *testing.T) {
	image := fixture.Get(t, fixture.Basic)
	c := openCache(t, image)
	for _, d := range image.Disks {
		for _, way := range []struct {
			name        string
			place, half bool
		}{{"", false, false}, {", placed", true, false}, {", half done", false, true}, {", half done and placed", true, true}} {
			t.Run(d.Name+way.name, func(t *testing.T) { interrupt(t, c, d, way.place, way.half, nil) })
		}
	}
}

// halfDone puts an operation in flight that has allocated a block which nothing owns yet: its
// bit is set, and no counter includes it.
func halfDone(t *testing.T, r *journal.Rescue, disk *jbd2.Recording) {
	t.Helper()
	r.Journal.Running.Updates = 1
	fs, err := ext4.Open(recovered(t, jbd2.NewRecording(disk)))
	if err != nil {
		t.Fatal(err)
	}
	for n := range uint32(fs.Super.Groups()) {
		g, err := fs.Group(n)
		if err != nil {
			t.Fatal(err)
		}
		at := slices.IndexFunc(r.Journal.Running.Buffers, func(b journal.Buffer) bool { return b.Block == g.BlockBitmap })
		if at < 0 {
			continue
		}
		b := &r.Journal.Running.Buffers[at]
		b.Data = bytes.Clone(b.Data)
		free := bytes.IndexFunc(b.Data[:fs.Super.BlocksPerGroup/(fs.Super.ClusterSize/fs.Super.BlockSize)/8], func(c rune) bool { return c == 0 })
		if free < 0 {
			continue
		}
		b.Data[free] |= 1
		return
	}
	t.Fatal("no bitmap with a free block is in the transaction")
}

// interrupt cuts the rescue of one disk. judge, if it is not nil, examines what a recovery makes of each
// cut, and what a second run of the rescue makes of it; its argument all says that this is the new state.
func interrupt(t *testing.T, c *pagecache.Cache, d fixture.Disk, place, half bool, judge func(t *testing.T, disk io.ReaderAt, all bool)) {
	base, err := os.Open(d.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	s := superOf(t, c, d)
	whole := jbd2.NewRecording(base)
	finish := func(disk *jbd2.Recording) *journal.Report {
		t.Helper()
		r, err := journal.Plan(c, s, disk)
		if err != nil {
			t.Fatal(err)
		}
		r.Place = place
		if half {
			halfDone(t, r, jbd2.NewRecording(base))
		}
		report, err := r.Finish(disk)
		if err != nil {
			t.Fatal(err)
		}
		if half && (report.Check != "" || report.Case != journal.Finished && len(report.Mended) == 0) {
			t.Fatalf("%v: to be checked: %q; mended %q", report.Case, report.Check, report.Mended)
		}
		return report
	}
	report := finish(whole)
	if report.Blocks == 0 {
		t.Fatal("nothing was open in this crash")
	}
	blocks := homes(t, d.Image, whole)
	size := int64(s.BlockSize)
	before, after := contents(t, recovered(t, jbd2.NewRecording(base)), blocks, size), contents(t, whole, blocks, size)
	old, all, again := 0, 0, 0
	rng := rand.New(rand.NewPCG(7, 1))
	ops := len(whole.Ops())
	for cut := 0; cut <= ops; cut++ {
		for try := range 3 {
			kept := func(int) bool { return try == 0 || try == 1 && rng.IntN(2) == 0 }
			crashed := whole.Crash(cut, kept)
			state := recovered(t, crashed)
			got := contents(t, state, blocks, size)
			isNew := same(got, after)
			switch {
			case isNew:
				all++
			case same(got, before):
				old++
			default:
				t.Fatalf("cut at write %d of %d, try %d: neither the old state nor the new one", cut, ops, try)
			}
			if judge != nil {
				judge(t, state, isNew)
			}
			if (cut+try)%7 != 0 && cut < ops-12 {
				continue
			}
			last := finish(crashed)
			if again++; !same(contents(t, crashed, blocks, size), after) {
				t.Fatalf("cut at write %d of %d, try %d: carried out again, it is not what it should be", cut, ops, try)
			}
			if place && (last.Placement.Err != nil || !slices.Equal(last.Placement.Files, report.Placement.Files)) {
				t.Fatalf("cut at write %d of %d, try %d: carried out again, it placed %+v", cut, ops, try, last.Placement)
			}
			sameData(t, whole, crashed)
			if judge != nil {
				judge(t, crashed, true)
			}
		}
	}
	t.Logf("%d writes and syncs: %d times the old state, %d times the new one; carried out again %d times", ops, old, all, again)
	if old == 0 || all == 0 {
		t.Error("the cuts showed only one of them")
	}
}

// sameData checks that a disk has everything that was written to another, except for the log and the
// superblock, which have times in them.
func sameData(t *testing.T, whole, disk *jbd2.Recording) {
	t.Helper()
	log, err := jbd2.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(log.Super.BlockSize)
	super, _ := log.FS.Super.Location()
	for off, data := range whole.Changed() {
		got := make([]byte, len(data))
		if _, err := disk.ReadAt(got, off); err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(data); at += jbd2.SectorSize {
			home := addr.Block((off + int64(at)) / size)
			if home != super && !log.Contains(home) && !bytes.Equal(got[at:at+jbd2.SectorSize], data[at:at+jbd2.SectorSize]) {
				t.Fatalf("block %d is not what it should be", home)
			}
		}
	}
}

// homes returns the blocks that a rescue's replay wrote, except for the superblock's,
// which also says whether the journal is in use.
func homes(t *testing.T, image string, whole *jbd2.Recording) []addr.Block {
	t.Helper()
	for n := len(whole.Ops()); n > 0; n-- { // back to when the log was not empty yet
		cut := whole.Prefix(n)
		log, err := jbd2.Open(cut)
		if err != nil {
			t.Fatal(err)
		}
		scan, err := log.Scan()
		if err != nil {
			t.Fatal(err)
		}
		if scan.Empty {
			continue
		}
		super, _ := log.FS.Super.Location()
		var out []addr.Block
		for _, b := range scan.Newest() {
			if b.Home != super {
				out = append(out, b.Home)
			}
		}
		return out
	}
	t.Fatal("the log of " + image + " was always empty")
	return nil
}

func contents(t *testing.T, disk *jbd2.Recording, blocks []addr.Block, size int64) [][]byte {
	t.Helper()
	var out [][]byte
	for _, b := range blocks {
		data := make([]byte, size)
		if _, err := disk.ReadAt(data, int64(b)*size); err != nil {
			t.Fatal(err)
		}
		out = append(out, data)
	}
	return out
}

func same(a, b [][]byte) bool {
	for i := range a {
		if !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}
