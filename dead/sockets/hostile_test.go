//go:build linux

package sockets_test

import (
	"errors"
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/dead/sockets"
	"understudy.dev/understudy/internal/lab/connections"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/tier"
)

// damaged is memory with some bytes replaced. It records where it was read until
// there is damage.
type damaged struct {
	ram.Memory
	bytes map[addr.Phys]byte
	looks []addr.PhysRange
}

func (d *damaged) View(pa addr.Phys, n int) ([]byte, error) {
	b, err := d.Memory.View(pa, n)
	if err != nil || n > 1<<20 {
		return b, err
	}
	if d.bytes == nil {
		d.looks = append(d.looks, addr.PhysRange{Start: pa, End: pa + addr.Phys(n)})
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

// damage changes up to 30 bits, or bytes, of what was read.
func (d *damaged) damage(seed int) {
	rng := rand.New(rand.NewPCG(uint64(seed), 1))
	d.bytes = make(map[addr.Phys]byte)
	for range 1 + rng.IntN(30) {
		r := d.looks[rng.IntN(len(d.looks))]
		at := r.Start + addr.Phys(rng.Uint64N(min(r.Len(), 4096)))
		v := byte(rng.Uint32())
		if b, err := d.Memory.View(at, 1); err == nil && rng.IntN(2) == 0 {
			v = b[0] ^ 1<<rng.IntN(8)
		}
		d.bytes[at] = v
	}
}

// hostile opens the default image so that it can be damaged.
func hostile(t *testing.T) (*kernel.Kernel, *damaged) {
	t.Helper()
	image := connections.Get(t, fixture.Default, order)
	mem, err := ram.OpenFile(image.RAM)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	d := &damaged{Memory: mem}
	k, err := kernel.Find(d)
	if err != nil {
		t.Fatal(err)
	}
	return k, d
}

var damageCases = flag.Int("damage", tier.Times(100, 400), "how many damaged images the tests of hostile memory make")

// TestHostileConnections damages bytes of a real crash image that the walk reads. The
// walk ends soon, without a panic; each connection that it yields is one that existed,
// between the same ends; and one that it calls exact is exact.
func TestHostileConnections(t *testing.T) {
	k, mem := hostile(t)
	for range sockets.Connections(k) { // so that the layouts are known, and reading them is not recorded
	}
	mem.looks = nil
	clean := make(map[addr.Virt]sockets.Connection)
	for c, err := range sockets.Connections(k) {
		if err != nil {
			t.Fatal(err)
		}
		clean[c.Addr] = c
	}
	refused, lost, quiet, unsure, other, keyless, worst := 0, 0, 0, 0, 0, 0, time.Duration(0)
	for seed := range *damageCases {
		mem.damage(seed)
		if !sockets.KnowsHash(k) { // the damage has hit the keys, or the code that loads them
			keyless++
			continue
		}
		start := time.Now()
		found, errs := 0, 0
		for c, err := range sockets.Connections(k) {
			if err != nil {
				errs++
				continue
			}
			found++
			want, ok := clean[c.Addr]
			switch {
			case !ok || want.Local != c.Local || want.Remote != c.Remote:
				t.Errorf("seed %d: there was no %+v", seed, c)
			case c.Exact() && c.SndNxt != want.SndNxt:
				t.Errorf("seed %d: %+v is not exact: %+v", seed, c, want)
			case c.Unsure:
				unsure++
			case c != want:
				other++
			}
		}
		worst = max(worst, time.Since(start))
		refused += errs
		lost += len(clean) - found
		if errs == 0 && found < len(clean) {
			// Only an entry that claims not to be a connection may be left out without an error.
			if quiet += len(clean) - found; len(clean)-found > len(mem.bytes) {
				t.Errorf("seed %d: %d connections are missing, and nothing is said about it", seed, len(clean)-found)
			}
		}
	}
	t.Logf("%d damaged images, %d of them without keys: %d refusals, %d connections lost, %d of them in silence, "+
		"%d unsure, %d with other numbers; the slowest took %v", *damageCases, keyless, refused, lost, quiet, unsure, other, worst)
	if refused == 0 || unsure == 0 || 20*keyless > *damageCases {
		t.Error("the damage did nothing")
	}
	if worst > 10*time.Second { // some 10 ms on an idle machine
		t.Errorf("it took %v", worst)
	}
}

// TestHostileNeighbours is the same with neighbours. Only a few bits of the hash of an
// address are known, those that choose its bucket: most damage to it shows.
func TestHostileNeighbours(t *testing.T) {
	k, mem := hostile(t)
	for range sockets.Neighbours(k) {
	}
	mem.looks = nil
	clean := make(map[addr.Virt]sockets.Neighbour)
	for n, err := range sockets.Neighbours(k) {
		if err != nil {
			t.Fatal(err)
		}
		clean[n.Addr] = n
	}
	refused, noticed, wrong, lost, other := 0, 0, 0, 0, 0
	for seed := range *damageCases {
		mem.damage(seed)
		found := 0
		for n, err := range sockets.Neighbours(k) {
			var refusal *sockets.Refusal
			if err != nil {
				if refused++; errors.As(err, &refusal) && refusal.Reason == sockets.BadHash {
					noticed++
				}
				continue
			}
			found++
			want, ok := clean[n.Addr]
			switch {
			case !ok:
				t.Errorf("seed %d: there was no %+v", seed, n)
			case n.Address != want.Address:
				wrong++
			case n != want:
				other++
			}
		}
		lost += len(clean) - found
	}
	t.Logf("%d damaged images: %d refusals, %d for their hash; %d wrong addresses, %d otherwise different, %d neighbours lost",
		*damageCases, refused, noticed, wrong, other, lost)
	if refused == 0 || 5*wrong > noticed {
		t.Errorf("%d wrong addresses, but %d of them noticed", wrong, noticed)
	}
}

func BenchmarkConnections(b *testing.B) {
	k := open(b, connections.Get(b, fixture.Default, order))
	n := 0
	for b.Loop() {
		n = 0
		for _, err := range sockets.Connections(k) {
			if err != nil {
				b.Fatal(err)
			}
			n++
		}
	}
	b.ReportMetric(float64(n), "connections")
}
