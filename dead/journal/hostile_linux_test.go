package journal_test

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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

var damageFrom = flag.Int("damage-from", 0, "with which of the damaged memories TestHostilePlace begins")

var damageCases = flag.Int("damage", tier.Times(50, 150), "how many damaged memories are made of each file system")

// TestHostileJournal damages the structures that the last commit is read from.
// Whatever they say, the rescue ends soon and without a panic, and every sector of the disk
// is what it was, what a recovery makes of it, or what a rescue from the
// undamaged memory makes of it. An incomplete commit is refused.
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
			mem := &damaged{Memory: rec.Memory}
			in := cacheOf(t, mem) // the memory that the kernel is found by is not damaged
			whole := jbd2.NewRecording(base)
			c = cacheOf(t, rec)
			s := superOf(t, c, d)
			rec.looks = nil
			r, err := journal.Plan(c, s, whole)
			if err != nil {
				t.Fatal(err)
			}
			looks := &seen{looks: rec.looks}
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
				mem.pages = make(map[addr.Phys][]byte)
				bytesOf(4)(mem, rng, looks)
				start := cpuTime(t)
				disk := jbd2.NewRecording(base)
				err := rescueIn(in, s.UUID, disk)
				worst = max(worst, cpuTime(t)-start)
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
			t.Logf("%d damaged memories: %d refused, %d whole all the same, %d without all data of files; the slowest took %v of a CPU",
				*damageCases, refused, complete, partly, worst)
			if worst > 30*time.Second {
				t.Errorf("it took %v of a CPU", worst)
			}
		})
	}
}

// cpuTime returns the CPU time that this process has used, so that a busy machine does not matter.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
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

func rescueIn(c *pagecache.Cache, id addr.UUID, disk *jbd2.Recording) error {
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

// judge knows what the disk was, what a recovery makes of it, and what a rescue from the
// undamaged memory makes of it.
type judge struct {
	t     *testing.T
	base  io.ReaderAt
	whole *jbd2.Recording
	plain *jbd2.Recording
	log   *jbd2.Log
	homes []addr.Block // blocks of the last commit and of the log before it
	after [][]byte     // their content after the rescue
}

// sectors checks every sector that was written.
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
