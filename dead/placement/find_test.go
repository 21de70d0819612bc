package placement

import (
	"math/rand/v2"
	"testing"
)

// TestFind looks for runs in maps that fill up, and checks that find agrees with a linear search.
func TestFind(t *testing.T) {
	found, not := 0, 0
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 3))
		size := 1 + rng.Uint32N(1000)
		m := &groupMap{used: make([]byte, 128), busy: make([]byte, 128), size: size, longest: size}
		for n := range uint32(1024) {
			if n >= size || rng.IntN(3) == 0 {
				set(m.busy, n)
			}
		}
		for range 400 {
			want := 1 + rng.Uint32N(1+rng.Uint32N(12))
			from := uint32(0)
			if rng.IntN(3) == 0 {
				from = rng.Uint32N(size)
			}
			at, ok := m.find(from, want)
			wantAt, wantOK := firstRun(m, from, want)
			if ok != wantOK || ok && at != wantAt {
				t.Fatalf("seed %d: %d clusters from %d on: at %d, %v instead of %d, %v", seed, want, from, at, ok, wantAt, wantOK)
			}
			if !ok {
				not++
				continue
			}
			found++
			if rng.IntN(4) > 0 {
				m.take(at, m.length(at, want))
			}
		}
	}
	if found == 0 || not == 0 {
		t.Errorf("%d found, %d not", found, not)
	}
}

// firstRun returns the first cluster, at from or behind it, where want clusters are free.
func firstRun(m *groupMap, from, want uint32) (uint32, bool) {
	for at := from; at+want <= m.size; at++ {
		n := uint32(0)
		for n < want && !has(m.busy, at+n) {
			n++
		}
		if n == want {
			return at, true
		}
	}
	return 0, false
}
