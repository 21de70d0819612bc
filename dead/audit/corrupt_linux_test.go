package audit_test

import (
	"encoding/binary"
	"flag"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/internal/lab/churn"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/tier"
)

var (
	spoilSeeds = flag.Int("audit.seeds", tier.Times(5, 12), "seeds of TestSpoiled for each configuration")
	spoilFirst = flag.Uint64("audit.first", 1, "the first of them")
)

// spoiler changes a transaction.
type spoiler struct {
	rand    *rand.Rand
	super   ext4.Super
	old     *os.File
	changed map[addr.Block][]byte
	parts   map[addr.Block]audit.Part
}

func newSpoiler(t testing.TB, s *churn.State, seed uint64) *spoiler {
	t.Helper()
	old, err := os.Open(s.Disk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { old.Close() })
	super, parts, err := audit.Parts(old, s.Changed)
	if err != nil {
		t.Fatal(err)
	}
	p := &spoiler{rand: rand.New(rand.NewPCG(seed, 7)), super: super, old: old, changed: make(map[addr.Block][]byte), parts: parts}
	for b, data := range s.Changed {
		p.changed[b] = slices.Clone(data)
	}
	return p
}

// any returns a block of a kind; nil if there is none.
func (p *spoiler) any(kinds ...string) (addr.Block, []byte) {
	var list []addr.Block
	for b, part := range p.parts {
		if _, there := p.changed[b]; there && slices.Contains(kinds, part.Kind) {
			list = append(list, b)
		}
	}
	if len(list) == 0 {
		return 0, nil
	}
	slices.Sort(list)
	b := list[p.rand.IntN(len(list))]
	return b, p.changed[b]
}

func u16(b []byte, at int) int         { return int(binary.LittleEndian.Uint16(b[at:])) }
func u32(b []byte, at int) uint32      { return binary.LittleEndian.Uint32(b[at:]) }
func set16(b []byte, at, v int)        { binary.LittleEndian.PutUint16(b[at:], uint16(v)) }
func set32(b []byte, at int, v uint32) { binary.LittleEndian.PutUint32(b[at:], v) }

// ratio returns how many blocks a cluster has.
func (p *spoiler) ratio() uint32 { return p.super.ClusterSize / p.super.BlockSize }

// one is 1 or -1.
func (p *spoiler) one() int { return 1 - 2*p.rand.IntN(2) }

// slot returns an inode in use that want accepts, and its number.
func (p *spoiler) slot(want func([]byte) bool) (addr.Ino, []byte) {
	for range 200 {
		b, data := p.any(audit.KindTable)
		if data == nil {
			return 0, nil
		}
		n := p.rand.IntN(len(data) / int(p.super.InodeSize))
		raw := data[n*int(p.super.InodeSize):][:p.super.InodeSize]
		if u16(raw, 0x1a) > 0 && want(raw) {
			return p.parts[b].Ino + addr.Ino(n), raw
		}
	}
	return 0, nil
}

func always([]byte) bool { return true }

func isRegular(raw []byte) bool { return u16(raw, 0)>>12 == 8 }

// entries returns the offsets of the names of a leaf, without "." and "..".
func (p *spoiler) entries(b addr.Block) []int {
	data, end := p.changed[b], len(p.changed[b])
	if p.super.Checksummed() {
		end -= 12
	}
	var out []int
	for at := 0; at+8 <= end; {
		length := u16(data, at+4)
		if length < 8 {
			break
		}
		if u32(data, at) != 0 && data[at+8] != '.' {
			out = append(out, at)
		}
		at += length
	}
	return out
}

// name returns a leaf and the offset of a name in it.
func (p *spoiler) name() ([]byte, int) {
	for range 50 {
		b, data := p.any(audit.KindLeaf)
		if data == nil {
			break
		}
		if list := p.entries(b); len(list) > 0 {
			return data, list[p.rand.IntN(len(list))]
		}
	}
	return nil, 0
}

// extents returns an extent node, or the root of a tree in an inode, and how many
// entries it has.
func (p *spoiler) extents() (node []byte, entries int) {
	if _, data := p.any(audit.KindNode); data != nil && p.rand.IntN(2) == 0 {
		return data, u16(data, 2)
	}
	_, raw := p.slot(func(raw []byte) bool { return u32(raw, 0x20)&0x80000 != 0 && u16(raw, 0x2a) > 0 })
	if raw == nil {
		return nil, 0
	}
	return raw[0x28 : 0x28+60], u16(raw, 0x2a)
}

// descriptor returns the descriptor of a group; nil if it is not in the transaction.
func (p *spoiler) descriptor(group uint32) []byte {
	place, at := p.super.DescriptorLocation(group)
	if data, ok := p.changed[place]; ok {
		return data[at : at+int(p.super.DescSize)]
	}
	return nil
}

func (p *spoiler) judge(t testing.TB, s *churn.State) (audit.Verdict, []string) {
	audit.Seal(p.super, p.old, p.changed, p.parts)
	return judge(t, s, p.changed)
}

// TestSpoiled spoils transactions in one place each, or in two, with all checksums
// right, and checks that the audit finds something whenever e2fsck does.
func TestSpoiled(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(configs)) {
		t.Run(name, func(t *testing.T) {
			inTier(t, name)
			spoilAll(t, configs[name].state(t, fixture.Default, 1), *spoilFirst, *spoilSeeds)
		})
	}
}

// TestSpoiledSmall is TestSpoiled with small file systems, of which everything is
// in the transaction.
func TestSpoiledSmall(t *testing.T) {
	if _, err := exec.LookPath("e2fsck"); err != nil {
		t.Skipf("%v; run scripts/setup.sh", err)
	}
	for _, name := range smalls {
		t.Run(filepath.Base(name), func(t *testing.T) {
			image := small(t, name)
			s := &churn.State{Disk: filepath.Join(t.TempDir(), "disk"), Changed: busy(t, image)}
			if err := os.WriteFile(s.Disk, image, 0o600); err != nil {
				t.Fatal(err)
			}
			spoilAll(t, s, *spoilFirst, 25**spoilSeeds)
		})
	}
}

func spoilAll(t *testing.T, s *churn.State, first uint64, seeds int) {
	var matrix [2][2]int
	mended := 0
	alarms := make(map[string]int)
	for seed := first; seed < first+uint64(seeds); seed++ {
		p := newSpoiler(t, s, seed)
		what := p.spoil()
		if seed%4 == 0 {
			what += ", " + p.spoil()
		}
		v, found := p.judge(t, s)
		matrix[b2i(len(found) == 0)][b2i(v.Clean)]++
		switch {
		case v.Clean && len(found) > 0:
			t.Errorf("seed %d: %s: clean, but e2fsck found %q", seed, what, found)
		case !v.Clean && len(found) == 0:
			alarms[what]++
			t.Logf("seed %d: %s: e2fsck found nothing; %q", seed, what, v.Reasons)
		}
		mended += b2i(judgeMended(t, s, p.changed, v))
	}
	t.Logf("e2fsck found something: audit too %d, not %d; nothing: audit neither %d, but audit %d: %v; clean once mended: %d",
		matrix[0][0], matrix[0][1], matrix[1][1], matrix[1][0], alarms, mended)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
