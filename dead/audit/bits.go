package audit

import (
	"encoding/binary"
	"fmt"
	"iter"
	mathbits "math/bits"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// bits is a bitmap. Bit 0 is the lowest of its first byte. Bits beyond its end are
// clear, as in the map of a group that was never initialised.
type bits []byte

func (b bits) has(n uint64) bool { return n/8 < uint64(len(b)) && b[n/8]>>(n%8)&1 != 0 }

// word returns the 64 bits from bit n on, where n is a multiple of 64.
func (b bits) word(n uint64) uint64 {
	if at := n / 8; at+8 <= uint64(len(b)) {
		return binary.LittleEndian.Uint64(b[at:])
	}
	return 0
}

// count returns how many of the bits before end are set.
func (b bits) count(end uint64) uint64 {
	set := uint64(0)
	for n := uint64(0); n < end; n += 64 {
		w := b.word(n)
		if left := end - n; left < 64 {
			w &= 1<<left - 1
		}
		set += uint64(mathbits.OnesCount64(w))
	}
	return set
}

// all reports whether all bits in [from, to) are set, or clear, as set says.
func (b bits) all(from, to uint64, set bool) bool {
	for n := from; n < to; {
		if n%64 == 0 && to-n >= 64 {
			if w := b.word(n); set && w != ^uint64(0) || !set && w != 0 {
				return false
			}
			n += 64
			continue
		}
		if b.has(n) != set {
			return false
		}
		n++
	}
	return true
}

// differ counts the bits before end that are not the same in both.
func (b bits) differ(other bits, end uint64) uint64 {
	n := uint64(0)
	for at := uint64(0); at < end; at += 64 {
		w := b.word(at) ^ other.word(at)
		if left := end - at; left < 64 {
			w &= 1<<left - 1
		}
		n += uint64(mathbits.OnesCount64(w))
	}
	return n
}

func (b bits) set(n uint64) {
	if n/8 < uint64(len(b)) {
		b[n/8] |= 1 << (n % 8)
	}
}

// groupBlocks returns the first block of a group and how many it has.
func groupBlocks(s *ext4.Super, group uint32) (addr.Block, uint64) {
	start := uint64(s.FirstDataBlock) + uint64(group)*uint64(s.BlocksPerGroup)
	return addr.Block(start), min(uint64(s.BlocksPerGroup), s.Blocks-start)
}

// groupOf returns the group of a block and its number there.
func groupOf(s *ext4.Super, b addr.Block) (uint32, uint64) {
	n := uint64(b) - uint64(s.FirstDataBlock)
	return uint32(n / uint64(s.BlocksPerGroup)), n % uint64(s.BlocksPerGroup)
}

// ratio returns how many blocks a cluster has: more than one with bigalloc.
func ratio(s *ext4.Super) uint64 { return uint64(s.ClusterSize / s.BlockSize) }

// groupClusters returns the first cluster of a group and how many it has. Without bigalloc
// clusters are blocks.
func groupClusters(s *ext4.Super, group uint32) (addr.Block, uint64) {
	start, n := groupBlocks(s, group)
	return start / addr.Block(ratio(s)), (n + ratio(s) - 1) / ratio(s)
}

// clusterGroup returns the group of a cluster and its number there.
func clusterGroup(s *ext4.Super, cluster addr.Block) (uint32, uint64) {
	group, n := groupOf(s, cluster*addr.Block(ratio(s)))
	return group, n / ratio(s)
}

// groupPiece is the part of a run of clusters that lies in one group. [from, to) are its numbers in the group.
type groupPiece struct {
	group    uint32
	from, to uint64
	run      run
}

// byGroup yields the parts of a run of clusters by the groups that they are in.
func byGroup(s *ext4.Super, r run) iter.Seq[groupPiece] {
	return func(yield func(groupPiece) bool) {
		for r.from < r.to {
			group, first := clusterGroup(s, r.from)
			start, size := groupClusters(s, group)
			end := min(uint64(r.to-start), size)
			p := groupPiece{group, first, end, run{r.from, start + addr.Block(end)}}
			if !yield(p) {
				return
			}
			r.from = p.run.to
		}
	}
}

// tableBlocks returns how many blocks the inode table of a group has.
func tableBlocks(s *ext4.Super) uint64 {
	perBlock := s.BlockSize / uint32(s.InodeSize)
	return uint64((s.InodesPerGroup + perBlock - 1) / perBlock)
}

// blockMap returns which clusters of a group are in use.
func (v *view) blockMap(group uint32) (bits, error) {
	if b, ok := v.blockBits[group]; ok {
		return b, nil
	}
	g, err := v.group(group)
	if err != nil {
		return nil, err
	}
	var b bits
	if g.Flags&ext4.GroupBlockUninit != 0 {
		b = v.freshMap(g)
	} else {
		if b, err = v.block(g.BlockBitmap); err != nil {
			return nil, err
		}
		if err := v.checkMap(b, int(uint64(v.super.BlocksPerGroup)/ratio(&v.super)/8), g.BlockBitmapCsum); err != nil {
			return nil, fmt.Errorf("block bitmap of group %d: %w", group, err)
		}
	}
	v.blockBits[group] = b
	return b, nil
}

// inodeMap returns which inodes of a group are in use.
func (v *view) inodeMap(group uint32) (bits, error) {
	if b, ok := v.inodeBits[group]; ok {
		return b, nil
	}
	g, err := v.group(group)
	if err != nil {
		return nil, err
	}
	var b bits
	if g.Flags&ext4.GroupInodeUninit == 0 {
		if b, err = v.block(g.InodeBitmap); err != nil {
			return nil, err
		}
		if err := v.checkMap(b, int(v.super.InodesPerGroup/8), g.InodeBitmapCsum); err != nil {
			return nil, fmt.Errorf("inode bitmap of group %d: %w", group, err)
		}
	}
	v.inodeBits[group] = b
	return b, nil
}

// checkMap verifies the checksum of a bitmap. Descriptors of 32 bytes have only the
// lower half of it (fs/ext4/bitmap.c).
func (v *view) checkMap(b []byte, size int, want uint32) error {
	if !v.super.Checksummed() {
		return nil
	}
	got := ext4.CRC32C(v.super.ChecksumSeed, b[:size])
	if v.super.DescSize < 64 {
		got &= 0xffff
	}
	if got != want {
		return fmt.Errorf("%w: %#x instead of %#x", ext4.ErrChecksum, want, got)
	}
	return nil
}

// freshMap returns the block bitmap of a group in which only the file system's own
// blocks are in use (fs/ext4/balloc.c, ext4_init_block_bitmap).
func (v *view) freshMap(g *ext4.Group) bits {
	b := make(bits, v.super.BlockSize)
	start, size := groupBlocks(&v.super, g.Number)
	each := ratio(&v.super)
	for n := range min(v.super.BaseBlocks(g.Number), size) {
		b.set(n / each)
	}
	own := func(first addr.Block, count uint64) {
		for n := first; n < first+addr.Block(count); n++ {
			if n >= start && uint64(n-start) < size {
				b.set(uint64(n-start) / each)
			}
		}
	}
	own(g.BlockBitmap, 1)
	own(g.InodeBitmap, 1)
	own(g.InodeTable, tableBlocks(&v.super))
	for n := (size + each - 1) / each; n < uint64(len(b))*8; n++ {
		b.set(n)
	}
	return b
}
