package placement

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// groupMap says which clusters of a group are in use.
type groupMap struct {
	used  []byte // the bitmap, with the changes made so far
	busy  []byte // what must not be taken: in use, in use without the last transaction, or to be avoided
	size  uint32 // in clusters
	first uint32 // no cluster before it is free
	taken uint32
	// longest is an upper bound of the length of runs that can be taken.
	longest uint32
	// No run of looked.want or more clusters begins before looked.before. Without this, each of many files of
	// one size would search again through all that the earlier ones took. Clusters are never given back.
	looked struct{ want, before uint32 }
}

// groupMapOf returns the map of a group, which it reads first if need be.
func (v *volume) groupMapOf(n uint32) (*groupMap, error) {
	if m, ok := v.maps[n]; ok {
		return m, nil
	}
	g := v.groups[n]
	used, err := v.bitmap(g, v.block)
	if err != nil {
		return nil, err
	}
	was, err := v.oldGroup(n)
	if err != nil {
		return nil, err
	}
	if was.BlockBitmap != g.BlockBitmap {
		return nil, fmt.Errorf("%w: the bitmap of group %d moves", errDamaged, n)
	}
	before, err := v.bitmap(was, v.oldBlock)
	if err != nil {
		return nil, err
	}
	size := v.clusters(n)
	m := &groupMap{used: used, busy: slices.Clone(used), size: size, longest: size}
	for i := range m.busy {
		m.busy[i] |= before[i]
	}
	start, blocks := v.bounds(n)
	first, _ := slices.BinarySearch(v.avoid, start)
	for _, b := range v.avoid[first:] {
		if b >= start+addr.Block(blocks) {
			break
		}
		set(m.busy, uint32(b-start)/v.cluster)
	}
	v.maps[n] = m
	return m, nil
}

// oldGroup returns the descriptor of a group without the last transaction.
func (v *volume) oldGroup(n uint32) (*ext4.Group, error) {
	home, offset := v.super.DescriptorLocation(n)
	b, err := v.oldBlock(home)
	if err != nil {
		return nil, err
	}
	g, err := v.super.ParseGroup(n, b[offset:offset+int(v.super.DescSize)])
	if err == nil && v.super.ROCompat&(ext4.ROCompatGDTCsum|ext4.ROCompatMetadataCsum) == 0 {
		g.Flags = 0
	}
	return g, err
}

// bitmap returns a copy of a group's block bitmap. The bitmap must have the right checksum and as
// many free clusters as the group counts, and the file system's own blocks must be in use in it.
func (v *volume) bitmap(g *ext4.Group, read func(addr.Block) ([]byte, error)) ([]byte, error) {
	start, _ := v.bounds(g.Number)
	size := v.clusters(g.Number)
	var out []byte
	if g.Flags&ext4.GroupBlockUninit != 0 {
		out = v.fresh(g.Number)
	} else {
		b, err := read(g.BlockBitmap)
		if err != nil {
			return nil, err
		}
		if v.super.Checksummed() && v.super.BitmapChecksum(b) != g.BlockBitmapCsum {
			return nil, fmt.Errorf("block bitmap of group %d: %w", g.Number, ext4.ErrChecksum)
		}
		out = slices.Clone(b)
	}
	free := uint32(0)
	for n := range size {
		if !has(out, n) {
			free++
		}
	}
	if free != g.FreeClusters {
		return nil, fmt.Errorf("%w: group %d counts %d free blocks and has %d", errDamaged, g.Number, g.FreeClusters, free)
	}
	for _, r := range v.systemIn(g.Number) {
		for b := r.from; b < r.to; b++ {
			if !has(out, uint32(b-start)/v.cluster) {
				return nil, fmt.Errorf("%w: block %d holds file system metadata, but is free in the bitmap", errDamaged, b)
			}
		}
	}
	for n := size; n < uint32(len(out))*8; n++ {
		if !has(out, n) {
			return nil, fmt.Errorf("%w: the block bitmap of group %d has clear bits beyond the end of the group", errDamaged, g.Number)
		}
	}
	return out, nil
}

// fresh returns the bitmap of a group in which only the file system's own blocks and the bits
// behind the end of the group are set (fs/ext4/balloc.c, ext4_init_block_bitmap).
func (v *volume) fresh(n uint32) []byte {
	out := make([]byte, v.super.BlockSize)
	start, _ := v.bounds(n)
	size := v.clusters(n)
	for _, r := range v.systemIn(n) {
		for b := r.from; b < r.to; b++ {
			set(out, uint32(b-start)/v.cluster)
		}
	}
	for n := size; n < uint32(len(out))*8; n++ {
		set(out, n)
	}
	return out
}

func has(b []byte, n uint32) bool { return b[n/8]>>(n%8)&1 != 0 }

func set(b []byte, n uint32) { b[n/8] |= 1 << (n % 8) }

// next returns the first bit in [from, end) that is set, or clear, as want says; end if there is none.
func next(b []byte, from, end uint32, want bool) uint32 {
	for n := from; n < end; {
		word := n &^ 63
		if word/8+8 <= uint32(len(b)) {
			w := binary.LittleEndian.Uint64(b[word/8:])
			if !want {
				w = ^w
			}
			if w &= ^uint64(0) << (n % 64); w != 0 {
				return min(end, word+uint32(bits.TrailingZeros64(w)))
			}
			n = word + 64
			continue
		}
		if has(b, n) == want {
			return n
		}
		n++
	}
	return end
}

// length returns how many clusters from one on can be taken, up to a limit.
func (m *groupMap) length(from, limit uint32) uint32 {
	end := min(m.size, from+limit)
	return next(m.busy, from, end, true) - from
}

// find returns the start of the first free run of at least want clusters that begins at from or behind it.
func (m *groupMap) find(from, want uint32) (uint32, bool) {
	if want > m.longest {
		return 0, false
	}
	longest := uint32(0)
	start, all := max(from, m.first), from <= m.first
	if was := m.looked; was.want > 0 && want >= was.want && start <= was.before {
		start, all, longest = was.before, true, was.want-1
	}
	for at := start; ; {
		at = next(m.busy, at, m.size, false)
		if at == m.size {
			break
		}
		n := m.length(at, want) // not longer: a run may reach to the end of the group
		if n >= want {
			if all {
				m.looked.want, m.looked.before = want, at
			}
			return at, true
		}
		longest = max(longest, n)
		at += n
	}
	if all {
		m.longest = longest
	}
	return 0, false
}

// take allocates n clusters.
func (m *groupMap) take(from, n uint32) {
	for b := from; b < from+n; b++ {
		set(m.used, b)
		set(m.busy, b)
	}
	m.taken += n
	if from <= m.first {
		m.first = next(m.busy, m.first, m.size, false)
	}
}

// maxLook is the number of groups that are searched for a run of one length.
const maxLook = 64

// allocate takes at most want clusters in one piece: those at the goal, if they are free; else
// the nearest run behind it that is long enough. If it finds none, it looks for runs of half the
// length, and so on. It returns the first block and the number of clusters.
func (v *volume) allocate(goal addr.Block, want uint32) (addr.Block, uint32, error) {
	want = min(want, v.super.BlocksPerGroup/v.cluster, ext4.MaxRun/v.cluster)
	group, at := v.groupOf(goal)
	m, err := v.groupMapOf(group)
	if err != nil {
		return 0, 0, err
	}
	if n := m.length(at, want); n > 0 && at > 0 {
		return v.takeAt(group, m, at, n), n, nil
	}
	for need := want; need > 0; need /= 2 {
		look := uint32(maxLook)
		if need == 1 {
			look = uint32(len(v.groups))
		}
		for n := range min(look, uint32(len(v.groups))) {
			group, from := (group+n)%uint32(len(v.groups)), at
			if n > 0 {
				from = 0
			}
			first, m, err := v.findIn(group, from, need)
			if err != nil {
				return 0, 0, err
			}
			if m != nil {
				got := m.length(first, want)
				return v.takeAt(group, m, first, got), got, nil
			}
		}
	}
	return 0, 0, ErrNoSpace
}

// findIn looks for a run of clusters in a group: from a cluster on, and then in all of the group.
func (v *volume) findIn(group, from, need uint32) (uint32, *groupMap, error) {
	if v.groups[group].FreeClusters < need {
		return 0, nil, nil
	}
	m, err := v.groupMapOf(group)
	if err != nil {
		return 0, nil, err
	}
	first, ok := m.find(from, need)
	if !ok && from > 0 {
		first, ok = m.find(0, need)
	}
	if !ok {
		return 0, nil, nil
	}
	return first, m, nil
}

func (v *volume) takeAt(group uint32, m *groupMap, at, n uint32) addr.Block {
	m.take(at, n)
	v.allocated += uint64(n)
	start, _ := v.bounds(group)
	return start + addr.Block(at*v.cluster)
}
