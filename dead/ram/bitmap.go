package ram

import (
	"encoding/binary"
	"fmt"
	"iter"
	"math/bits"
	"slices"

	"understudy.dev/understudy/dead/addr"
)

// bitmap is a set of page frames that can also tell how many of them lie below a
// frame.
type bitmap struct {
	words []uint64
	below []uint64 // for every rankWords words: number of bits set in all words before them
	total uint64
}

const rankWords = 8

// readBitmap reads count bits, the lowest first, from a file. The caller has
// checked that they are within the file.
func readBitmap(in input, off int64, count uint64) (*bitmap, error) {
	m := &bitmap{words: make([]uint64, (count+63)/64)}
	buf := make([]byte, 64<<10)
	left := (count + 7) / 8
	for i := 0; left > 0; {
		part := buf[:min(left, uint64(len(buf)))]
		if _, err := in.ReadAt(part, off); err != nil {
			return nil, fmt.Errorf("read bitmap: %w", err)
		}
		left -= uint64(len(part))
		off += int64(len(part))
		for ; len(part)%8 != 0; part = append(part, 0) {
		}
		for ; len(part) > 0; part = part[8:] {
			m.words[i] = binary.LittleEndian.Uint64(part)
			i++
		}
	}
	if rest := count % 64; rest != 0 {
		m.words[len(m.words)-1] &= 1<<rest - 1
	}
	m.rank()
	return m, nil
}

// rank counts the bits; words must not change afterwards.
func (m *bitmap) rank() {
	m.below = make([]uint64, 0, len(m.words)/rankWords+1)
	for i, w := range m.words {
		if i%rankWords == 0 {
			m.below = append(m.below, m.total)
		}
		m.total += uint64(bits.OnesCount64(w))
	}
}

// has reports whether a frame is in the set.
func (m *bitmap) has(pfn addr.PFN) bool {
	i := uint64(pfn) / 64
	return i < uint64(len(m.words)) && m.words[i]>>(pfn%64)&1 != 0
}

// before returns how many frames below pfn are in the set. pfn must not be greater than the last
// frame in the set.
func (m *bitmap) before(pfn addr.PFN) uint64 {
	i := int(pfn / 64)
	n := m.below[i/rankWords]
	for _, w := range m.words[i/rankWords*rankWords : i] {
		n += uint64(bits.OnesCount64(w))
	}
	return n + uint64(bits.OnesCount64(m.words[i]&(1<<(pfn%64)-1)))
}

// countBelow returns how many frames below pfn are in the set. pfn may be any frame.
func (m *bitmap) countBelow(pfn uint64) uint64 {
	if pfn/64 >= uint64(len(m.words)) {
		return m.total
	}
	return m.before(addr.PFN(pfn))
}

// next returns the first frame from pfn on that is in the set, if want is true, or not
// in it, if want is false. It returns end if there is none before end.
func (m *bitmap) next(pfn, end addr.PFN, want bool) addr.PFN {
	var flip uint64
	if !want {
		flip = ^uint64(0)
	}
	for pfn < end {
		i := uint64(pfn) / 64
		if i >= uint64(len(m.words)) {
			if want {
				return end
			}
			return pfn
		}
		if w := (m.words[i] ^ flip) >> (pfn % 64); w != 0 {
			return min(end, pfn+addr.PFN(bits.TrailingZeros64(w)))
		}
		pfn = addr.PFN(i+1) * 64
	}
	return end
}

func (m *bitmap) equal(other *bitmap) bool { return slices.Equal(m.words, other.words) }

// runs yields the stretches of [start, end) that are in the set.
func (m *bitmap) runs(start, end addr.PFN) iter.Seq2[addr.PFN, addr.PFN] {
	return func(yield func(addr.PFN, addr.PFN) bool) {
		end := min(end, addr.PFN(len(m.words))*64)
		for start < end {
			first := m.next(start, end, true)
			if first >= end {
				return
			}
			start = m.next(first, end, false)
			if !yield(first, start) {
				return
			}
		}
	}
}
