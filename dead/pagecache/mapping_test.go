package pagecache

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// disk is a disk with blocks of 1 KiB.
type disk map[addr.Block][]byte

func (d disk) read(block addr.Block, size int) ([]byte, error) {
	if b, ok := d[block]; ok && size == 1024 {
		return b, nil
	}
	return nil, ErrNotCached
}

// node returns a node of an extent tree: each entry is first block, count and place, or
// first block, 0 and place of the child.
func node(size, depth int, entries ...[3]uint64) []byte {
	b := make([]byte, size)
	binary.LittleEndian.PutUint16(b, ext4.ExtentMagic)
	binary.LittleEndian.PutUint16(b[2:], uint16(len(entries)))
	binary.LittleEndian.PutUint16(b[6:], uint16(depth))
	for i, e := range entries {
		at := b[12+12*i:]
		binary.LittleEndian.PutUint32(at, uint32(e[0]))
		if depth > 0 {
			binary.LittleEndian.PutUint32(at[4:], uint32(e[2]))
			binary.LittleEndian.PutUint16(at[8:], uint16(e[2]>>32))
			continue
		}
		binary.LittleEndian.PutUint16(at[4:], uint16(e[1]))
		binary.LittleEndian.PutUint16(at[6:], uint16(e[2]>>32))
		binary.LittleEndian.PutUint32(at[8:], uint32(e[2]))
	}
	return b
}

func at(off, end, disk int64, unwritten bool) Mapped {
	return Mapped{Span: addr.Span{Off: off << 10, End: end << 10}, Disk: disk << 10, Unwritten: unwritten}
}

func TestExtents(t *testing.T) {
	d := disk{
		50: node(1024, 0, [3]uint64{0, 2, 100}, [3]uint64{2, 1, 102}, [3]uint64{5, 32768 + 3, 200}),
		51: node(1024, 0, [3]uint64{9, 1, 1<<32 + 7}),
		52: node(1024, 1, [3]uint64{0, 0, 50}),
		60: node(1024, 1, [3]uint64{0, 0, 60}),
	}
	all := []Mapped{at(0, 3, 100, false), at(5, 8, 200, true), at(9, 10, 1<<32+7, false)}
	for name, tc := range map[string]struct {
		root []byte
		want []Mapped
		err  error
	}{
		"empty":     {node(60, 0), nil, nil},
		"leaf":      {node(60, 0, [3]uint64{4, 2, 9}), []Mapped{at(4, 6, 9, false)}, nil},
		"tree":      {node(60, 1, [3]uint64{0, 0, 50}, [3]uint64{9, 0, 51}), all, nil},
		"deep tree": {node(60, 2, [3]uint64{0, 0, 52}), all[:2], nil},
		"backwards": {node(60, 1, [3]uint64{9, 0, 51}, [3]uint64{0, 0, 50}), nil, ErrMapping},
		"too many":  {node(100, 0, [3]uint64{0, 1, 1}, [3]uint64{1, 1, 5}, [3]uint64{2, 1, 9}, [3]uint64{3, 1, 3}, [3]uint64{4, 1, 1})[:60], nil, ErrMapping},
		"no magic":  {make([]byte, 60), nil, ErrMapping},
		"cycle":     {node(60, 2, [3]uint64{0, 0, 60}), nil, ErrMapping},
		"absent":    {node(60, 1, [3]uint64{0, 0, 99}), nil, ErrNotCached},
		"too deep":  {node(60, 6, [3]uint64{0, 0, 50}), nil, ErrMapping},
	} {
		m := &mapper{read: d.read, block: 1024, size: 1 << 40}
		err := m.extents(tc.root, maxExtentDepth+1)
		if !errors.Is(err, tc.err) || err == nil && !slices.Equal(m.out, tc.want) {
			t.Errorf("%s: %v, %v", name, m.out, err)
		}
	}
}

func numbers(size int, set map[int]uint32) []byte {
	b := make([]byte, size)
	for i, n := range set {
		binary.LittleEndian.PutUint32(b[4*i:], n)
	}
	return b
}

func TestIndirectBlocks(t *testing.T) {
	d := disk{
		50: numbers(1024, map[int]uint32{0: 100, 1: 101, 255: 9}),
		51: numbers(1024, map[int]uint32{1: 50}),
		52: numbers(1024, map[int]uint32{0: 51}),
	}
	for name, tc := range map[string]struct {
		root map[int]uint32
		size int64
		want []Mapped
		err  error
	}{
		"direct":  {map[int]uint32{0: 7, 1: 8, 11: 9}, 1 << 40, []Mapped{at(0, 2, 7, false), at(11, 12, 9, false)}, nil},
		"single":  {map[int]uint32{12: 50}, 1 << 40, []Mapped{at(12, 14, 100, false), at(267, 268, 9, false)}, nil},
		"double":  {map[int]uint32{13: 51}, 1 << 40, []Mapped{at(524, 526, 100, false), at(779, 780, 9, false)}, nil},
		"triple":  {map[int]uint32{14: 52}, 1 << 40, []Mapped{at(66060, 66062, 100, false), at(66315, 66316, 9, false)}, nil},
		"by size": {map[int]uint32{0: 7, 12: 99}, 12 << 10, []Mapped{at(0, 1, 7, false)}, nil},
		"absent":  {map[int]uint32{12: 99}, 1 << 40, nil, ErrNotCached},
	} {
		m := &mapper{read: d.read, block: 1024, size: tc.size}
		err := m.blocks(numbers(rootSize, tc.root))
		if !errors.Is(err, tc.err) || err == nil && !slices.Equal(m.out, tc.want) {
			t.Errorf("%s: %v, %v", name, m.out, err)
		}
	}
}

// FuzzMapping reads from a device whose every block is one of a few. Whatever they say,
// mapping ends, and its result ascends without an overlap.
func FuzzMapping(f *testing.F) {
	f.Add(node(60, 0, [3]uint64{4, 2, 9}), true)
	f.Add(append(node(60, 1, [3]uint64{0, 0, 0}, [3]uint64{9, 0, 1}), node(1024, 0, [3]uint64{9, 1, 4})...), true)
	f.Add(numbers(rootSize+1024, map[int]uint32{0: 7, 12: 1, 13: 2, 14: 3, 15: 1, 16: 2}), false)
	f.Fuzz(func(t *testing.T, b []byte, extents bool) {
		b = append(b, make([]byte, rootSize)...)
		root, rest := b[:rootSize], append(b[rootSize:], make([]byte, 1024)...)
		reads := 0
		m := &mapper{block: 1024, size: 1 << 40, read: func(block addr.Block, size int) ([]byte, error) {
			reads++
			at := int(uint64(block) % uint64(len(rest)-size+1))
			return rest[at : at+size], nil
		}}
		var err error
		if extents {
			err = m.extents(root, maxExtentDepth+1)
		} else {
			m.size = 1 << 24
			err = m.blocks(root)
		}
		end := int64(0)
		for _, e := range m.out {
			if e.Off < end || e.Len() <= 0 || e.Disk < 0 {
				t.Fatalf("%v after %d", e, end)
			}
			end = e.End
		}
		if reads > maxMetaBlocks {
			t.Fatalf("%d blocks read, %v", reads, err)
		}
	})
}
