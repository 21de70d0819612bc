package salvage_test

import (
	"flag"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/tier"
)

// recorder records where memory was read.
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

// damaged is memory with some bytes replaced.
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

// damage returns the memory with up to 30 bytes replaced, somewhere where it was read.
func (r *recorder) damage(rng *rand.Rand) *damaged {
	d := &damaged{Memory: r.Memory, bytes: make(map[addr.Phys]byte)}
	for range 1 + rng.IntN(30) {
		look := r.looks[rng.IntN(len(r.looks))]
		d.bytes[look.Start+addr.Phys(rng.Uint64N(look.Len()))] = byte(rng.Uint32())
	}
	return d
}

var damageCases = flag.Int("damage", tier.Times(100, 400), "how many damaged images TestHostileMemory makes")

// TestHostileMemory damages bytes of a real crash image that the plan depends
// on. Whatever they say, planning ends soon, without a panic; and what is planned
// for a file is that file's own data, or the plan is for a file that does not
// exist, which the file system therefore refuses.
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
	judge := newJudge(t, k, id, whole)
	failed, refused, worst := 0, 0, time.Duration(0)
	for seed := range *damageCases {
		mem := rec.damage(rand.New(rand.NewPCG(uint64(seed), 1)))
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
		judge.plan(seed, p)
		if !p.Report().Complete() {
			refused++
		} else if len(p.Files)+p.Deleted < len(whole.Files)+whole.Deleted-31 {
			t.Errorf("seed %d: %d files are missing, and nothing is said about it", seed, len(whole.Files)-len(p.Files))
		}
	}
	t.Logf("%d damaged images: %d gave an error, %d a plan with refusals; %d bytes planned, of them wrong: %d; "+
		"%d files that do not exist, %d of another size; the slowest took %v",
		*damageCases, failed, refused, judge.bytes, judge.wrong, judge.strangers, judge.resized, worst)
	if worst > 30*time.Second { // some 0.1 s on an idle machine
		t.Errorf("it took %v", worst)
	}
}

// TestHostileUncommitted does the same to what says which files are not committed, and which inodes were dropped: of ext4, XFS and
// btrfs, with the plans of the latter two. Whatever the bytes say, it ends soon, without a panic.
func TestHostileUncommitted(t *testing.T) {
	image := fixture.Get(t, fixture.Everything(fixture.Default))
	rec := &recorder{Memory: openKernel(t, image).Memory()}
	k, err := kernel.Find(rec)
	if err != nil {
		t.Fatal(err)
	}
	rec.looks = nil
	whole, failed := uncommitted(k)
	if failed != nil || whole < 300 {
		t.Fatalf("%d files are not committed, %v", whole, failed)
	}
	errs, fewer, worst := 0, 0, time.Duration(0)
	for seed := range *damageCases {
		mem := rec.damage(rand.New(rand.NewPCG(uint64(seed), 2)))
		start := time.Now()
		k, err := kernel.Find(mem)
		if err != nil {
			errs++
			continue
		}
		n, err := uncommitted(k)
		worst = max(worst, time.Since(start))
		switch {
		case err != nil:
			errs++
		case n < whole-31:
			fewer++
		}
	}
	t.Logf("%d damaged images: %d gave an error, %d fewer files; the slowest took %v", *damageCases, errs, fewer, worst)
	if worst > time.Minute {
		t.Errorf("it took %v", worst)
	}
}

// uncommitted counts the files that are not committed, in all file systems. The error is the first one.
func uncommitted(k *kernel.Kernel) (n int, failed error) {
	note := func(err error) {
		if failed == nil {
			failed = err
		}
	}
	c, err := pagecache.Open(k)
	if err != nil {
		return 0, err
	}
	for s, err := range c.Superblocks() {
		if err != nil {
			note(err)
			continue
		}
		if !s.HasBuffers() && s.Type != "xfs" && s.Type != "btrfs" {
			continue
		}
		test, err := c.Uncommitted(s)
		if err != nil || test == nil {
			note(err)
			continue
		}
		all := make(map[addr.Virt]struct{})
		for i, err := range c.Inodes(s) {
			if err != nil {
				note(err)
				continue
			}
			all[i.Addr] = struct{}{}
			yes, err := test(i)
			if err != nil {
				note(err)
			}
			if yes {
				n++
			}
		}
		for err := range c.Dropped(s, all) {
			note(err)
		}
		if _, err := salvage.ForDisk(c, s, false); err != nil && !s.HasBuffers() {
			note(err)
		}
	}
	return n, failed
}

// fileID is what a file is opened by.
type fileID struct {
	ino        addr.Ino
	generation uint32
}

// judge knows the undamaged image, and compares plans with it.
type judge struct {
	t       *testing.T
	k       *kernel.Kernel
	mapping kernel.Field
	files   map[fileID]*salvage.File
	owner   map[fileID]addr.Virt // the address of the page cache of each inode

	bytes, wrong       int64
	strangers, resized int
}

func newJudge(t *testing.T, k *kernel.Kernel, id pagecache.UUID, whole *salvage.Plan) *judge {
	t.Helper()
	j := &judge{t: t, k: k, files: make(map[fileID]*salvage.File), owner: make(map[fileID]addr.Virt)}
	layout := k.Types().Layout("page")
	j.mapping = layout.Field("mapping", 8)
	if err := layout.Err(); err != nil {
		t.Fatal(err)
	}
	for i := range whole.Files {
		f := &whole.Files[i]
		j.files[fileID{f.Ino, f.Generation}] = f
	}
	c, err := pagecache.Open(k)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Superblock(id)
	if err != nil {
		t.Fatal(err)
	}
	for i, err := range c.Inodes(s) {
		if err != nil {
			t.Fatal(err)
		}
		j.owner[fileID{i.Ino, i.Generation}] = i.Mapping()
	}
	return j
}

// plan checks that each page that a plan has for a file was that file's own in
// the undamaged memory.
func (j *judge) plan(seed int, p *salvage.Plan) {
	j.t.Helper()
	for i := range p.Files {
		f := &p.Files[i]
		id := fileID{f.Ino, f.Generation}
		owner, known := j.owner[id]
		if !known {
			j.strangers++
			continue
		}
		if w := j.files[id]; w != nil && w.Size != f.Size {
			j.resized++
		}
		for r := range f.Runs {
			for at, n := range f.Runs[r].Physical() {
				j.bytes += n
				for page := at &^ (addr.PageSize - 1); page < at+addr.Phys(n); page += addr.PageSize {
					if j.ownerOf(page) != owner {
						j.wrong += addr.PageSize
						j.t.Errorf("seed %d: inode %d gets page %#x, which is of another file", seed, f.Ino, page)
					}
				}
			}
		}
	}
}

// ownerOf returns the page cache that a page belongs to, by its struct page in
// the undamaged memory.
func (j *judge) ownerOf(at addr.Phys) addr.Virt {
	v, err := j.k.Pointer(j.mapping.In(j.k.PageStruct(addr.PFN(at / addr.PageSize))))
	if err != nil {
		j.t.Fatal(err)
	}
	return v
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
