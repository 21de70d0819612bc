package salvage_test

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"understudy/addr"
	"understudy/internal/fixture"
	"understudy/kernel"
	"understudy/ram"
	"understudy/salvage"
)

// recorder remembers where memory was looked at.
type recorder struct {
	ram.Memory
	mu    sync.Mutex
	looks []addr.PhysRange
}

func (r *recorder) View(pa addr.Phys, n int) ([]byte, error) {
	if n <= addr.PageSize {
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
				out = append([]byte(nil), b...)
			}
			out[at-pa] = v
		}
	}
	return out, nil
}

// TestHostileMemory damages bytes of a real crash image, of those that the plan
// depends on. Whatever they say, planning ends soon, without a panic, and no run
// has bytes from outside of its file or of memory.
func TestHostileMemory(t *testing.T) {
	image := fixture.Get(t, fixture.Basic)
	rec := &recorder{Memory: openKernel(t, image).Memory()}
	k, err := kernel.Find(rec)
	if err != nil {
		t.Fatal(err)
	}
	id := uuidOf(t, image.Disks[0])
	rec.looks = nil
	whole, err := salvage.New(k, id)
	if err != nil {
		t.Fatal(err)
	}
	rounds := 400
	if testing.Short() {
		rounds = 40
	}
	failed, refused, worst := 0, 0, time.Duration(0)
	for seed := range rounds {
		rng := rand.New(rand.NewPCG(uint64(seed), 1))
		mem := &damaged{Memory: rec.Memory, bytes: make(map[addr.Phys]byte)}
		for range 1 + rng.IntN(30) {
			r := rec.looks[rng.IntN(len(rec.looks))]
			mem.bytes[r.Start+addr.Phys(rng.Uint64N(r.Len()))] = byte(rng.Uint32())
		}
		start := time.Now()
		k, err := kernel.Find(mem)
		if err != nil {
			failed++
			continue
		}
		p, err := salvage.New(k, id)
		worst = max(worst, time.Since(start))
		if err != nil {
			failed++
			continue
		}
		checkRuns(t, seed, p)
		if !p.Report().Complete() {
			refused++
		} else if len(p.Files)+p.Deleted < len(whole.Files)+whole.Deleted-31 {
			t.Errorf("seed %d: %d files are missing, and nothing is said about it", seed, len(whole.Files)-len(p.Files))
		}
	}
	t.Logf("of %d damaged images, %d gave an error and %d a plan with refusals; the slowest took %v", rounds, failed, refused, worst)
	if worst > 5*time.Second {
		t.Errorf("it took %v", worst)
	}
}

func checkRuns(t *testing.T, seed int, p *salvage.Plan) {
	t.Helper()
	if p.StagingSize() > 512<<20 {
		t.Fatalf("seed %d: %d bytes of unsaved data in 512 MiB of memory", seed, p.StagingSize())
	}
	for i := range p.Files {
		f := &p.Files[i]
		done := int64(0)
		for j := range f.Runs {
			r := &f.Runs[j]
			if r.Off < done || r.Len() <= 0 || r.End > f.Size || r.Staged%addr.PageSize != 0 {
				t.Errorf("seed %d: inode %d of %d bytes: run %v after %d", seed, f.Ino, f.Size, r.Span, done)
			}
			done = r.End
		}
	}
	if err := p.Gather(make([]byte, p.StagingSize())); err != nil {
		t.Errorf("seed %d: %v", seed, err)
	}
}
