package kernel_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

// file is a made-up machine's memory as the beginning of a file that does not say how it is arranged.
type file struct {
	*kerneltest.Machine
	size     int64
	blocks   int
	arranged []ram.Arrangement // the arrangements that it was asked for
}

func (f *file) Guesses(of ram.Machine) []ram.Arrangement {
	return []ram.Arrangement{{Low: 2 * gib}, {Low: 3 * gib}}
}
func (f *file) Bytes() int64 { return f.size }
func (f *file) Blocks() int  { return f.blocks }
func (f *file) Arranged(a ram.Arrangement) ram.Memory {
	f.arranged = append(f.arranged, a)
	return f.Machine
}

const gib, mib = 1 << 30, 1 << 20

// e820 is an entry of the firmware's map.
type e820 struct{ start, size, kind uint64 }

func (f *file) firmware(all []e820) []btf.Type {
	u32, u64 := &btf.Int{Name: "u32", Size: 4}, &btf.Int{Name: "u64", Size: 8}
	entry := &btf.Struct{Name: "e820_entry", Size: 24, Members: []btf.Member{
		{Name: "addr", Type: u64}, {Name: "size", Type: u64, Offset: 64}, {Name: "type", Type: u32, Offset: 128}}}
	table := &btf.Struct{Name: "e820_table", Size: 8 + 24*16, Members: []btf.Member{
		{Name: "nr_entries", Type: u32}, {Name: "entries", Type: &btf.Array{Index: u32, Type: entry, Nelems: 16}, Offset: 64}}}
	at := f.Alloc(int(table.Size))
	f.PutU64(f.Image("e820_table_firmware", 8), uint64(at))
	f.PutU32(at, uint32(len(all)))
	for _, e := range all {
		f.PutU64(at+8, e.start)
		f.PutU64(at+16, e.size)
		f.PutU64(at+24, e.kind)
		at += 24
	}
	return []btf.Type{pageType, entry, table}
}

// TestArranged checks that a file's memory is arranged as the firmware's map says, if that adds up to the file's size. If
// it does not, memory in several blocks is refused, since some may have been plugged in; one block is taken as it is.
func TestArranged(t *testing.T) {
	const ramKind, reserved = 1, 2
	low := func(n uint64) []e820 {
		return []e820{{0, 0x9fc00, ramKind}, {0x9fc00, 0x400, reserved}, {mib, n - mib - 64<<10, ramKind}, {n - 64<<10, 64 << 10, reserved}}
	}
	with := func(all []e820, more ...e820) []e820 { return append(slices.Clone(all), more...) }
	for name, tc := range map[string]struct {
		size    int64
		blocks  int
		told    []e820
		want    ram.Arrangement
		refused bool
	}{
		"one block":                          {6 * gib, 1, with(low(3*gib), e820{4 * gib, 3 * gib, ramKind}), ram.Arrangement{Low: 3 * gib}, false},
		"two nodes":                          {6 * gib, 2, with(low(3*gib), e820{4 * gib, 3 * gib, ramKind}), ram.Arrangement{Low: 3 * gib}, false},
		"two nodes below 4 GiB":              {2 * gib, 2, low(2 * gib), ram.Arrangement{Low: 2 * gib}, false},
		"a node and a DIMM":                  {5632 * mib, 2, with(low(2*gib), e820{4 * gib, 2560 * mib, ramKind}), ram.Arrangement{}, true},
		"a node and a small DIMM":            {4736 * mib, 2, with(low(2*gib), e820{4 * gib, 2560 * mib, ramKind}), ram.Arrangement{}, true},
		"a node below 4 GiB and a DIMM":      {2 * gib, 2, low(gib), ram.Arrangement{}, true},
		"fewer blocks than firmware told of": {4 * gib, 2, with(low(2*gib), e820{4 * gib, 4 * gib, ramKind}), ram.Arrangement{}, true},
		"one block, cut":                     {5 * gib, 1, with(low(2*gib), e820{4 * gib, 4 * gib, ramKind}), ram.Arrangement{Low: 2 * gib}, false},
		"one block, much of which is kept":   {4 * gib, 1, low(2 * gib), ram.Arrangement{Low: 2 * gib}, false},
		"one block, less of which is kept":   {2304 * mib, 1, low(2 * gib), ram.Arrangement{Low: 2304 * mib}, false},
		"a map that is none":                 {6 * gib, 2, []e820{{5 * gib, gib, ramKind}}, ram.Arrangement{Low: 2 * gib}, false},
		"an empty map":                       {6 * gib, 2, nil, ram.Arrangement{Low: 2 * gib}, false},
	} {
		t.Run(name, func(t *testing.T) {
			f := &file{Machine: kerneltest.New(t), size: tc.size, blocks: tc.blocks, arranged: []ram.Arrangement{{Low: 2 * gib}}}
			f.Finish(f.firmware(tc.told)...)
			_, err := kernel.Find(f)
			switch {
			case tc.refused && (err == nil || !strings.Contains(err.Error(), "which blocks of the file are where in memory is not known") || errors.Is(err, kernel.ErrNoKernel)):
				t.Errorf("%v, want a refusal", err)
			case !tc.refused && err != nil:
				t.Error(err)
			case !tc.refused && f.arranged[len(f.arranged)-1] != tc.want:
				t.Errorf("arranged as %v, want %v", f.arranged, tc.want)
			}
		})
	}
}
