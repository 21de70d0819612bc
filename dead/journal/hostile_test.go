package journal_test

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/tier"
)

// recorder remembers where memory was looked at, but for whole blocks: their
// content has checksums of its own.
type recorder struct {
	ram.Memory
	block int
	mu    sync.Mutex
	looks []addr.PhysRange
}

func (r *recorder) View(pa addr.Phys, n int) ([]byte, error) {
	if n < addr.PageSize && n != r.block {
		r.mu.Lock()
		r.looks = append(r.looks, addr.PhysRange{Start: pa, End: pa + addr.Phys(n)})
		r.mu.Unlock()
	}
	return r.Memory.View(pa, n)
}

// damaged is memory in which some bytes are others.
type damaged struct {
	ram.Memory
	bytes map[addr.Phys]byte
}

func (d *damaged) View(pa addr.Phys, n int) ([]byte, error) {
	b, err := d.Memory.View(pa, n)
	if err != nil || n > 1<<20 {
		return b, err
	}
	out := b
	for at, v := range d.bytes {
		if at >= pa && at < pa+addr.Phys(n) {
			if &out[0] == &b[0] {
				out = bytes.Clone(b)
			}
			out[at-pa] = v
		}
	}
	return out, nil
}

var damageFrom = flag.Int("damage-from", 0, "with which of the damaged memories TestHostilePlace begins")

var damageCases = flag.Int("damage", 150, "how many damaged memories TestHostileJournal makes of each file system")

// TestHostileJournal damages the structures that the last commit is read from.
// Whatever they say, it ends soon and without a panic, and no sector of the disk
// becomes anything but what it was, what a recovery makes of it, or what the
// undamaged memory makes of it. A commit that is not all there is refused.
func TestHostileJournal(t *testing.T) {
	image := fixture.Get(t, fixture.Basic)
	for _, d := range image.Disks {
		t.Run(d.Name, func(t *testing.T) {
			if d.Name != "ext4" {
				tier.Full(t, "hostile memory of "+d.Name)
			}
			base, err := os.Open(d.Image)
			if err != nil {
				t.Fatal(err)
			}
			defer base.Close()
			c := openCache(t, image)
			rec := &recorder{Memory: c.Kernel().Memory(), block: int(superOf(t, c, d).BlockSize)}
			whole := jbd2.NewRecording(base)
			c = cacheOf(t, rec)
			s := superOf(t, c, d)
			rec.looks = nil
			r, err := journal.Plan(c, s, whole)
			if err != nil {
				t.Fatal(err)
			}
			looks := rec.looks
			if _, err := r.Finish(whole); err != nil {
				t.Fatal(err)
			}
			j := &judge{t: t, base: base, whole: whole, plain: recovered(t, jbd2.NewRecording(base))}
			if j.log, err = jbd2.Open(jbd2.NewRecording(base)); err != nil {
				t.Fatal(err)
			}
			size := int64(s.BlockSize)
			j.homes = homes(t, d.Image, whole)
			j.after = contents(t, whole, j.homes, size)
			refused, complete, partly := 0, 0, 0
			worst := time.Duration(0)
			for seed := range *damageCases {
				rng := rand.New(rand.NewPCG(uint64(seed), 3))
				mem := &damaged{Memory: rec.Memory, bytes: make(map[addr.Phys]byte)}
				for range 1 + rng.IntN(4) {
					at := looks[rng.IntN(len(looks))]
					mem.bytes[at.Start+addr.Phys(rng.Uint64N(at.Len()))] = byte(rng.Uint32())
				}
				start := time.Now()
				disk := jbd2.NewRecording(base)
				err := rescueIn(mem, s.UUID, disk)
				worst = max(worst, time.Since(start))
				j.sectors(seed, disk)
				switch {
				case err != nil:
					refused++
				case j.complete(disk):
					complete++
				default:
					partly++
				}
				if err == nil && !same(contents(t, disk, j.homes, size), j.after) {
					t.Errorf("seed %d: a part of the last commit is missing, and nothing is said about it", seed)
				}
			}
			t.Logf("%d damaged memories: %d refused, %d whole all the same, %d without all data of files; the slowest took %v",
				*damageCases, refused, complete, partly, worst)
			if worst > 30*time.Second {
				t.Errorf("it took %v", worst)
			}
		})
	}
}

func cacheOf(t testing.TB, mem ram.Memory) *pagecache.Cache {
	t.Helper()
	k, err := kernel.Find(mem)
	if err != nil {
		t.Fatal(err)
	}
	c, err := pagecache.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// openIn opens the page cache of the kernel in memory that may be damaged.
func openIn(mem ram.Memory) (*pagecache.Cache, error) {
	k, err := kernel.Find(mem)
	if err != nil {
		return nil, err
	}
	return pagecache.Open(k)
}

func rescueIn(mem ram.Memory, id addr.UUID, disk *jbd2.Recording) error {
	c, err := openIn(mem)
	if err != nil {
		return err
	}
	s, err := c.Superblock(id)
	if err != nil {
		return err
	}
	r, err := journal.Plan(c, s, disk)
	if err != nil {
		return err
	}
	_, err = r.Finish(disk)
	return err
}

// judge knows what the disk was, what a recovery makes of it, and what the
// undamaged memory does.
type judge struct {
	t     *testing.T
	base  io.ReaderAt
	whole *jbd2.Recording
	plain *jbd2.Recording
	log   *jbd2.Log
	homes []addr.Block // that the last commit and the log before it have
	after [][]byte     // what they are to become
}

// sectors checks all that was written.
func (j *judge) sectors(seed int, disk *jbd2.Recording) {
	j.t.Helper()
	size := int64(j.log.Super.BlockSize)
	for off, data := range disk.Changed() {
		for at := 0; at < len(data); at += jbd2.SectorSize {
			place := off + int64(at)
			if j.log.Contains(addr.Block(place/size)) || place >= ext4.SuperOffset && place < ext4.SuperOffset+ext4.SuperSize {
				continue // what is in the log is for a recovery to judge
			}
			got := data[at : at+jbd2.SectorSize]
			if !j.is(j.whole, place, got) && !j.is(j.base, place, got) && !j.is(j.plain, place, got) {
				j.t.Errorf("seed %d: byte %d of the disk becomes something else", seed, place)
				return
			}
		}
	}
}

func (j *judge) is(disk io.ReaderAt, at int64, want []byte) bool {
	b := make([]byte, len(want))
	if _, err := disk.ReadAt(b, at); err != nil && !errors.Is(err, io.EOF) {
		j.t.Fatal(err)
	}
	return bytes.Equal(b, want)
}

// complete reports whether a disk has all that the undamaged memory brings.
func (j *judge) complete(disk *jbd2.Recording) bool {
	size := int64(j.log.Super.BlockSize)
	for off, data := range j.whole.Changed() {
		for at := 0; at < len(data); at += jbd2.SectorSize {
			place := off + int64(at)
			if j.log.Contains(addr.Block(place / size)) {
				continue
			}
			if !j.is(disk, place, data[at:at+jbd2.SectorSize]) {
				return false
			}
		}
	}
	return true
}
