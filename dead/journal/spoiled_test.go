package journal_test

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/internal/lab/fixture"
)

// TestSpoiledMetadata damages a block of the running transaction. Nothing may be written then:
// a check would turn it into a file system without files that were on the disk.
func TestSpoiledMetadata(t *testing.T) {
	image := fixture.Get(t, fixture.Basic)
	c := openCache(t, image)
	tried := make(map[string]int)
	for _, d := range image.Disks {
		base, err := os.Open(d.Image)
		if err != nil {
			t.Fatal(err)
		}
		defer base.Close()
		fs, err := ext4.Open(recovered(t, jbd2.NewRecording(base)))
		if err != nil {
			t.Fatal(err)
		}
		g, err := fs.Group(0)
		if err != nil {
			t.Fatal(err)
		}
		descriptors, _ := fs.Super.DescriptorLocation(0)
		zeros := func(b []byte) { clear(b) }
		for _, tc := range []struct {
			name  string
			block addr.Block
			do    func([]byte)
			half  bool // also with an operation in flight
			sums  bool // only where there are checksums
		}{
			{"descriptors of zeros", descriptors, zeros, true, false},
			{"inodes of zeros", g.InodeTable, zeros, true, false},
			{"a bit of an inode", g.InodeTable, func(b []byte) { b[int(fs.Super.InodeSize)+9] ^= 4 }, false, true},
			{"two inodes", g.InodeTable, func(b []byte) { b[int(fs.Super.InodeSize)+9] ^= 4; b[3*int(fs.Super.InodeSize)+9] ^= 4 }, true, true},
			{"no inodes in use", g.InodeBitmap, zeros, false, false},
		} {
			for _, place := range []bool{false, true} {
				for _, half := range []bool{false, true} {
					if half && !tc.half || tc.sums && !fs.Super.Checksummed() {
						continue
					}
					disk := jbd2.NewRecording(base)
					r, err := journal.Plan(c, superOf(t, c, d), disk)
					if err != nil {
						t.Fatal(err)
					}
					r.Place = place
					if half {
						r.Journal.Running.Updates = 1
					}
					if !spoil(r.Journal.Running, tc.block, tc.do) {
						continue
					}
					tried[tc.name]++
					_, err = r.Finish(disk)
					if !errors.Is(err, journal.ErrDamaged) || len(disk.Ops()) > 0 {
						t.Errorf("%s: %s, with places %v, in flight %v: %d writes, %v", d.Name, tc.name, place, half, len(disk.Ops()), err)
					}
				}
			}
			if tried[tc.name] == 0 && d.Name == image.Disks[len(image.Disks)-1].Name {
				t.Errorf("%s: no transaction has block %d", tc.name, tc.block)
			}
		}
	}
}

// spoil changes a block of a transaction.
func spoil(tr *journal.Transaction, block addr.Block, do func([]byte)) bool {
	at := slices.IndexFunc(tr.Buffers, func(b journal.Buffer) bool { return b.Block == block })
	if at >= 0 {
		tr.Buffers[at].Data = bytes.Clone(tr.Buffers[at].Data)
		do(tr.Buffers[at].Data)
	}
	return at >= 0
}

// TestSpoiledInode puts an operation in flight, and makes the inode of a file that would be whole differ
// between the running transaction and memory. The file no longer counts as whole; or everything
// is refused, if the inode's checksum is wrong and nobody was writing it.
func TestSpoiledInode(t *testing.T) {
	image := fixture.Get(t, fixture.Basic)
	c := openCache(t, image)
	d := image.Disks[0]
	base, err := os.Open(d.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer base.Close()
	fs, err := ext4.Open(recovered(t, jbd2.NewRecording(base)))
	if err != nil {
		t.Fatal(err)
	}
	finish := func(disk *jbd2.Recording, change func(*journal.Transaction)) *journal.Report {
		t.Helper()
		r, err := journal.Plan(c, superOf(t, c, d), disk)
		if err != nil {
			t.Fatal(err)
		}
		r.Place, r.Journal.Running.Updates = true, 1
		change(r.Journal.Running)
		report, err := r.Finish(disk)
		if errors.Is(err, journal.ErrDamaged) && len(disk.Ops()) == 0 {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		return report
	}
	whole := finish(jbd2.NewRecording(base), func(*journal.Transaction) {})
	for name, tc := range map[string]struct {
		do      func(ino addr.Ino, raw []byte)
		refused bool
	}{
		"a bit of its map":  {func(_ addr.Ino, raw []byte) { raw[0x28+16] ^= 1 }, true},
		"a size of earlier": {func(ino addr.Ino, raw []byte) { raw[4] ^= 1; fs.Super.SealInode(ino, raw) }, false},
	} {
		tried := 0
		for ino := range whole.Written {
			if slices.Contains(whole.Placement.Files, ino) {
				continue
			}
			group, block, offset, err := fs.Super.InodeLocation(ino)
			if err != nil {
				t.Fatal(err)
			}
			g, err := fs.Group(group)
			if err != nil {
				t.Fatal(err)
			}
			there := false
			report := finish(jbd2.NewRecording(base), func(tr *journal.Transaction) {
				there = spoil(tr, g.InodeTable+addr.Block(block), func(b []byte) { tc.do(ino, b[offset:][:fs.Super.InodeSize]) })
			})
			if there && (report == nil) != tc.refused {
				t.Errorf("%s: inode %d: refused is %v", name, ino, report == nil)
			} else if report != nil {
				if _, written := report.Written[ino]; there && written {
					t.Errorf("%s: inode %d counts as whole", name, ino)
				}
			}
			if there {
				tried++
			}
			if tried == 5 {
				break
			}
		}
		if tried == 0 {
			t.Errorf("%s: no file to try it with", name)
		}
	}
}
