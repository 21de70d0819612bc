package journal_test

import (
	"bytes"
	"crypto/sha256"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/internal/lab/fixture"
)

// putOff is a disk that only remembers what may be written before everything else.
type putOff struct {
	*jbd2.Recording
	free []jbd2.Stretch
}

func (p *putOff) WriteFree(n int, at func(int) (jbd2.Stretch, error)) error {
	for i := range n {
		s, err := at(i)
		if err != nil {
			return err
		}
		p.free = append(p.free, s)
	}
	return nil
}

// TestFree writes anything to the free blocks that data goes to: an ordinary recovery leaves every
// file as it was, and e2fsck says the same. With the rest of a rescue on top, the disk is whole once
// the data is written again.
func TestFree(t *testing.T) {
	image := fixture.Get(t, fixture.Basic)
	c := openCache(t, image)
	for _, d := range image.Disks {
		t.Run(d.Name, func(t *testing.T) {
			disk := copyOf(t, d.Image)
			crashed, said := everyFile(t, disk), repaired(t, d.Image)
			out := &putOff{Recording: jbd2.NewRecording(disk)}
			r, err := journal.Plan(c, superOf(t, c, d), out)
			if err != nil {
				t.Fatal(err)
			}
			r.Place = true
			report, err := r.Finish(out)
			if err != nil || report.Placement == nil || report.Placement.Err != nil {
				t.Fatalf("%+v, %v", report.Placement, err)
			}
			if len(out.free) == 0 && d.Type == "ext4" {
				t.Fatal("nothing goes to free blocks")
			}
			total := overwrite(t, disk, out.free, func(b []byte) {
				for i := range b {
					b[i] = byte(rand.Uint32())
				}
			})
			if got := everyFile(t, disk); !maps.Equal(got, crashed) {
				t.Error("another recovery of the crash")
			}
			if got := repaired(t, disk.Name()); got != said {
				t.Errorf("e2fsck said:\n%s\nand says:\n%s", said, got)
			}
			for off, data := range out.Changed() {
				if _, err := disk.WriteAt(data, off); err != nil {
					t.Fatal(err)
				}
			}
			overwrite(t, disk, out.free, nil)
			fsck(t, disk.Name())
			compare(t, image, d, disk.Name(), report.Written)
			t.Logf("%d stretches of %d bytes, of %d that were placed", len(out.free), total, report.Placement.Bytes)
		})
	}
}

// overwrite writes stretches to a disk, after spoil, if it is not nil, has changed them.
func overwrite(t *testing.T, disk *os.File, all []jbd2.Stretch, spoil func([]byte)) (total int64) {
	t.Helper()
	for _, s := range all {
		b := bytes.Join(s.Data, nil)
		if spoil != nil {
			spoil(b)
		}
		if _, err := disk.WriteAt(b, s.Off); err != nil {
			t.Fatal(err)
		}
		total += s.Len()
	}
	return total
}

// everyFile returns the SHA-256 of all inodes that have content, after an ordinary recovery.
func everyFile(t *testing.T, disk *os.File) map[addr.Ino][sha256.Size]byte {
	t.Helper()
	fs, err := ext4.Open(recovered(t, jbd2.NewRecording(disk)))
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[addr.Ino][sha256.Size]byte)
	last := addr.Ino(fs.Super.Groups() * uint64(fs.Super.InodesPerGroup))
	for ino := addr.Ino(1); ino <= last; ino++ {
		i, err := fs.Inode(ino)
		if err != nil || i.Links == 0 && i.Size == 0 || ino == fs.Super.JournalInode {
			continue
		}
		if b, err := contentOf(fs, i); err == nil {
			out[ino] = sha256.Sum256(b)
		}
	}
	if len(out) < 10 {
		t.Fatalf("%d files can be read", len(out))
	}
	return out
}

// repaired returns what e2fsck says about a copy of a disk, including the replay of its log.
func repaired(t *testing.T, path string) string {
	t.Helper()
	disk := copyOf(t, path)
	said, _ := exec.Command("e2fsck", "-fy", disk.Name()).CombinedOutput() // the output says more than the exit status
	return string(bytes.ReplaceAll(said, []byte(disk.Name()), []byte("DISK")))
}
