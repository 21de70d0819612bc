package pagecache_test

import (
	"bytes"
	"os"
	"strings"
	"sync"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/fixture"
)

// looks is memory that records where it was read.
type looks struct {
	ram.Memory
	mu sync.Mutex
	at []addr.PhysRange // of reads of less than a page
	// wrong is the address of the byte that is changed by flip, unless flip is 0.
	wrong addr.Phys
	flip  byte
}

func (l *looks) View(pa addr.Phys, n int) ([]byte, error) {
	b, err := l.Memory.View(pa, n)
	if err != nil || n >= addr.PageSize {
		return b, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at = append(l.at, addr.PhysRange{Start: pa, End: pa + addr.Phys(n)})
	if l.flip != 0 && l.wrong >= pa && l.wrong < pa+addr.Phys(n) {
		b = bytes.Clone(b)
		b[l.wrong-pa] ^= l.flip
	}
	return b, nil
}

// TestZerosInImage checks that what a kernel knew to read as zeros is not mapped, or only
// as unwritten, by the block mapping of the file; and that the walk ends, with its result in
// order, whichever byte of the tree is changed.
func TestZerosInImage(t *testing.T) {
	for _, name := range fixture.Kernels {
		t.Run(name, func(t *testing.T) {
			image := fixture.Get(t, fixture.Everything(name))
			mem, err := ram.OpenFile(image.RAM)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { mem.Close() })
			l := &looks{Memory: mem}
			c := openCache(t, l)
			known, damaged := 0, 0
			for _, d := range image.Disks {
				if d.Type != "ext4" {
					continue
				}
				s := superOf(t, c, image, d.Name)
				compareMoving(t, c, s, l, strings.HasSuffix(name, "-rt"))
				f, err := os.Open(d.Image)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				dev, err := c.Device(s, f)
				if err != nil {
					t.Fatal(err)
				}
				for i, err := range c.Inodes(s) {
					if err != nil {
						t.Fatal(err)
					}
					if !i.Regular() {
						continue
					}
					l.at = nil
					zeros, err := c.Zeros(s, i)
					if err != nil {
						t.Fatal(err)
					}
					seen := l.at
					compareAll(t, c, s, i)
					if len(zeros) == 0 {
						continue
					}
					if damaged < 20 {
						damaged++
						damage(t, c, s, i, l, seen)
					}
					mapping, err := dev.Mapping(i)
					if err != nil {
						t.Fatal(err)
					}
					mapped := int64(0)
					for _, m := range mapping {
						mapped += m.Len()
					}
					// The sectors also include extent tree nodes and attributes.
					if more := int64(i.Sectors)*512 - mapped; more < 0 || more > 16<<10 {
						t.Errorf("%s: inode %d has %d sectors, and %d bytes mapped", d.Name, i.Ino, i.Sectors, mapped)
					}
					for _, z := range zeros {
						known++
						for _, m := range mapping {
							if m.Off < z.End && z.Off < m.End && !m.Unwritten {
								t.Errorf("%s: inode %d: %v is known to be zeros, and lies in %v", d.Name, i.Ino, z, m)
							}
						}
					}
				}
			}
			if known == 0 {
				t.Error("nothing is known to be zeros")
			}
			t.Logf("%d stretches of zeros", known)
		})
	}
}

// compareMoving checks that no file is mid-update, and that one whose lock is held is: bit 0 of 8 bytes says so, or bit 30
// of 4 with PREEMPT_RT (kernel/locking/rwsem.c, RWSEM_WRITER_LOCKED; include/linux/rwbase_rt.h, WRITER_BIAS).
func compareMoving(t *testing.T, c *pagecache.Cache, s *pagecache.Superblock, l *looks, rt bool) {
	t.Helper()
	size, at, held := addr.Phys(8), addr.Phys(0), byte(1)
	if rt {
		size, at, held = 4, 3, 0x40
	}
	moving := func() (out []*pagecache.Inode) {
		t.Helper()
		for i, err := range c.MidUpdate(s) {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, i)
		}
		return out
	}
	moving() // reads what is looked up only once
	l.at = nil
	if all := moving(); len(all) > 0 {
		t.Errorf("%d files were moving", len(all))
	}
	var locks []addr.PhysRange
	for _, r := range l.at {
		if r.End-r.Start == size {
			locks = append(locks, r)
		}
	}
	if !rt {
		locks = locks[1:] // the first is the head of the list
	}
	seen := make(map[addr.Ino]bool)
	for _, r := range locks {
		l.wrong, l.flip = r.Start+at, held
		for _, i := range moving() {
			seen[i.Ino] = true
		}
	}
	if l.flip = 0; len(seen) < 100 || len(seen) > len(locks) {
		t.Errorf("%d files were moving, of %d locks", len(seen), len(locks))
	}
}

// compareAll checks that All yields what Held and Unsaved yield together, in
// order.
func compareAll(t *testing.T, c *pagecache.Cache, s *pagecache.Superblock, i *pagecache.Inode) {
	t.Helper()
	got := make(map[int64]addr.Phys) // by block of 512 bytes
	end := int64(0)
	for p, err := range c.All(s, i) {
		if err != nil || p.Off < end || p.End <= p.Off {
			t.Fatalf("inode %d: %+v after %d, %v", i.Ino, p, end, err)
		}
		end = p.End
		for off := p.Off; off < p.End; off += 512 {
			got[off] = p.Phys + addr.Phys(off-p.Off)
		}
	}
	want := make(map[int64]addr.Phys)
	for _, walk := range []func(func(pagecache.Piece, error) bool){c.Held(s, i), c.Unsaved(s, i)} {
		for p, err := range walk {
			if err != nil {
				t.Fatal(err)
			}
			for off := p.Off; off < p.End; off += 512 {
				want[off] = p.Phys + addr.Phys(off-p.Off)
			}
		}
	}
	if len(got) != len(want) {
		t.Errorf("inode %d: %d sectors instead of %d", i.Ino, len(got), len(want))
	}
	for off, phys := range want {
		if got[off] != phys {
			t.Errorf("inode %d: byte %d is at %#x instead of %#x", i.Ino, off, got[off], phys)
		}
	}
}

// damage changes each byte that was read, and checks that the zeros are still in order.
func damage(t *testing.T, c *pagecache.Cache, s *pagecache.Superblock, i *pagecache.Inode, l *looks, seen []addr.PhysRange) {
	t.Helper()
	for _, r := range seen {
		for l.wrong = r.Start; l.wrong < r.End; l.wrong++ {
			for _, l.flip = range []byte{1, 0x80, 0xff} {
				zeros, _ := c.Zeros(s, i) // an error is fine
				end := int64(0)
				for _, z := range zeros {
					if z.Off < end || z.End <= z.Off {
						t.Fatalf("%#x: %v after %d", l.wrong, z, end)
					}
					end = z.End
				}
			}
		}
	}
	l.flip = 0
}
