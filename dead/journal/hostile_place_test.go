package journal_test

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/fixture/record"
	"understudy.dev/understudy/internal/lab/tier"
)

// TestHostilePlace damages the structures that places are made from. Whatever they say,
// e2fsck finds nothing wrong with the file system afterwards, or the rescue was refused;
// and each file that is said to be whole has just the bytes that it had, unless its inode
// in memory itself has another size by now.
func TestHostilePlace(t *testing.T) {
	image := fixture.Get(t, fixture.Basic)
	for _, d := range image.Disks {
		t.Run(d.Name, func(t *testing.T) {
			if d.Name != "ext4" {
				tier.Full(t, "hostile memory of files to be placed on "+d.Name)
			}
			disk := copyOf(t, d.Image)
			c := openCache(t, image)
			rec := &recorder{Memory: c.Kernel().Memory(), block: int(superOf(t, c, d).BlockSize)}
			c = cacheOf(t, rec)
			s := superOf(t, c, d)
			rec.looks = nil
			lookAround(t, c, s, disk)
			truth := make(map[addr.Ino]record.File)
			for _, f := range image.Files(d.Name) {
				truth[addr.Ino(f.Ino)] = f
			}
			looks := rec.looks
			slices.SortFunc(looks, func(a, b addr.PhysRange) int { return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.End, b.End)) })
			done, refused, checked, placed, worst := 0, 0, 0, 0, time.Duration(0)
			end, limited := t.Deadline()
			for seed := *damageFrom; seed < *damageFrom+max(1, *damageCases/3); seed++ {
				if limited && done > 0 && time.Until(end) < time.Minute {
					break // it says how many were done
				}
				done++
				rng := rand.New(rand.NewPCG(uint64(seed), 5))
				mem := &damaged{Memory: rec.Memory, bytes: make(map[addr.Phys]byte)}
				for range 1 + rng.IntN(4) {
					at := looks[rng.IntN(len(looks))]
					mem.bytes[at.Start+addr.Phys(rng.Uint64N(at.Len()))] = byte(rng.Uint32())
				}
				out := jbd2.NewRecording(disk)
				start := time.Now()
				report, sizes, err := placeIn(mem, s.UUID, out)
				worst = max(worst, time.Since(start))
				if err != nil {
					refused++
					continue
				}
				if report.Placement != nil {
					placed += len(report.Placement.Files)
				}
				if report.Check == "" {
					checked++
					fsckOf(t, seed, disk, out)
				}
				wholeFiles(t, seed, out, report, truth, sizes)
				if t.Failed() {
					for at, v := range mem.bytes {
						was, err := rec.Memory.View(at, 1)
						t.Logf("seed %d: at %#x is %#x instead of %#x, %v", seed, uint64(at), v, was, err)
					}
					return
				}
			}
			t.Logf("%d damaged memories from %d on: %d refused, %d that e2fsck finds nothing wrong with, %d files placed; the slowest took %v",
				done, *damageFrom, refused, checked, placed, worst)
			if worst > 30*time.Second {
				t.Errorf("it took %v", worst)
			}
		})
	}
}

// lookAround reads what a rescue with placement reads, but for the content of files.
func lookAround(t *testing.T, c *pagecache.Cache, s *pagecache.Superblock, disk io.ReaderAt) {
	t.Helper()
	if _, err := journal.Plan(c, s, jbd2.NewRecording(disk)); err != nil {
		t.Fatal(err)
	}
	dev, err := c.Device(s, disk)
	if err != nil {
		t.Fatal(err)
	}
	for i, err := range c.Dirty(s) {
		if err == nil && i.Regular() {
			_, _ = dev.UnsavedBlocks(i) // what is read counts
		}
	}
	if _, err := c.Quotas(s); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Ext4(s); err != nil {
		t.Fatal(err)
	}
}

// placeIn does a rescue, and says what sizes the memory has for its files.
func placeIn(mem *damaged, id addr.UUID, disk *jbd2.Recording) (*journal.Report, map[addr.Ino]int64, error) {
	c, err := openIn(mem)
	if err != nil {
		return nil, nil, err
	}
	s, err := c.Superblock(id)
	if err != nil {
		return nil, nil, err
	}
	r, err := journal.Plan(c, s, disk)
	if err != nil {
		return nil, nil, err
	}
	r.Place = true
	report, err := r.Finish(disk)
	sizes := make(map[addr.Ino]int64)
	for i, err := range c.Dirty(s) {
		if err == nil {
			sizes[i.Ino] = i.Size
		}
	}
	return report, sizes, err
}

// fsckOf has e2fsck look at what is written to a disk, and takes it off again.
func fsckOf(t *testing.T, seed int, disk *os.File, out *jbd2.Recording) {
	t.Helper()
	for off, data := range out.Changed() {
		was := make([]byte, len(data))
		if _, err := disk.ReadAt(was, off); err != nil {
			t.Fatal(err)
		}
		if _, err := disk.WriteAt(data, off); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if _, err := disk.WriteAt(was, off); err != nil {
				t.Error(err)
			}
		}()
	}
	// It deletes what was deleted while it was open, which is no fault.
	undo := disk.Name() + ".undo"
	said, err := exec.Command("e2fsck", "-fp", "-z", undo, disk.Name()).CombinedOutput()
	defer os.Remove(undo)
	_, rest, _ := strings.Cut(string(said), "e2undo "+undo+" "+disk.Name()+"\n")
	if left := strings.TrimSpace(harmless.ReplaceAllString(rest, "")); left != "" || rest == "" {
		t.Errorf("seed %d: e2fsck found: %v: %s", seed, err, left)
	}
	if out, err := exec.Command("e2undo", "-f", undo, disk.Name()).CombinedOutput(); err != nil {
		t.Fatalf("e2undo: %v: %s", err, out)
	}
}

// wholeFiles reads each file that is whole on a disk.
func wholeFiles(t *testing.T, seed int, out *jbd2.Recording, report *journal.Report, truth map[addr.Ino]record.File, sizes map[addr.Ino]int64) {
	t.Helper()
	fs, err := ext4.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	for ino := range report.Written {
		want, known := truth[ino]
		i, err := fs.Inode(ino)
		if err != nil || !known || !i.IsRegular() {
			continue
		}
		if n := int64(i.Size); n != want.Size && n == sizes[ino] {
			t.Logf("seed %d: inode %d has %d bytes, as memory says", seed, ino, n)
			continue
		}
		b, err := contentOf(fs, i)
		if err != nil {
			t.Errorf("seed %d: inode %d: %v", seed, ino, err)
			continue
		}
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != want.SHA256 {
			t.Errorf("seed %d: inode %d is said to be whole, and is not", seed, ino)
		}
	}
}

// contentOf reads a file.
func contentOf(fs *ext4.FS, i *ext4.Inode) ([]byte, error) {
	size := uint64(fs.Super.BlockSize)
	if i.Size > 1<<30 {
		return nil, errors.New("it is too large")
	}
	out := make([]byte, (i.Size+size-1)/size*size)
	for at := uint64(0); at*size < i.Size; {
		r, err := fs.Map(i, uint32(at))
		if errors.Is(err, ext4.ErrHole) {
			at++
			continue
		}
		if err != nil {
			return nil, err
		}
		n := min(uint64(r.Length), uint64(len(out))/size-at)
		if !r.Unwritten {
			if err := fs.ReadBlocks(out[at*size:][:n*size], r.Physical); err != nil {
				return nil, err
			}
		}
		at += n
	}
	return out[:i.Size], nil
}
