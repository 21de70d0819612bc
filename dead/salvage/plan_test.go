package salvage

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
)

// pages is memory whose every page is filled with its own number.
type pages int

func (p pages) View(pa addr.Phys, n int) ([]byte, error) {
	if !(addr.PhysRange{End: addr.Pages4K.Phys(addr.PFN(p))}).Contains(pa, uint64(n)) {
		return nil, &ram.Fault{Addr: pa, Len: n}
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(addr.Pages4K.PFN(pa + addr.Phys(i)))
	}
	return b, nil
}
func (p pages) Ranges() []addr.PhysRange {
	return []addr.PhysRange{{End: addr.Pages4K.Phys(addr.PFN(p))}}
}
func (p pages) Close() error { return nil }

func piece(off, end int64, frame addr.PFN) pagecache.Piece {
	return pagecache.Piece{Span: addr.Span{Off: off, End: end}, Phys: addr.Pages4K.Phys(frame)}
}

func TestRuns(t *testing.T) {
	type run struct {
		off, end, write, staged int64
		direct                  bool
		segments                int
	}
	for name, tc := range map[string]struct {
		size   int64
		pieces []pagecache.Piece
		want   []run
	}{
		"pages in a row, also in memory": {
			0x3000, []pagecache.Piece{piece(0, 0x1000, 5), piece(0x1000, 0x2000, 6), piece(0x2000, 0x3000, 9)},
			[]run{{0, 0x3000, 0x3000, 0, true, 2}},
		},
		"a gap": {
			0x3000, []pagecache.Piece{piece(0, 0x1000, 5), piece(0x2000, 0x3000, 6)},
			[]run{{0, 0x1000, 0x1000, 0, true, 1}, {0x2000, 0x3000, 0x1000, 0x1000, true, 1}},
		},
		"an end within a page": {
			0x1801, []pagecache.Piece{piece(0, 0x1000, 5), piece(0x1000, 0x2000, 6)},
			[]run{{0, 0x1801, 0x2000, 0, true, 1}},
		},
		"a folio beyond the end": {
			0x10, []pagecache.Piece{piece(0, 0x4000, 4)},
			[]run{{0, 0x10, 0x1000, 0, true, 1}},
		},
		"parts of a page": {
			0x3000, []pagecache.Piece{piece(0, 0x1000, 5), piece(0x1000, 0x1400, 6), piece(0x1c00, 0x2000, 6), piece(0x2000, 0x3000, 7)},
			[]run{
				{0, 0x1000, 0x1000, 0, true, 1},
				{0x1000, 0x1400, 0x400, 0x1000, false, 1},
				{0x1c00, 0x2000, 0x400, 0x2000, false, 1},
				{0x2000, 0x3000, 0x1000, 0x3000, true, 1},
			},
		},
		"nothing within the file": {0, []pagecache.Piece{piece(0, 0x1000, 5)}, nil},
	} {
		f := File{Size: tc.size}
		for _, p := range tc.pieces {
			f.take(p)
		}
		p := Plan{Files: []File{f}, mem: pages(16)}
		p.stage()
		var got []run
		for i := range p.Files[0].Runs {
			r := &p.Files[0].Runs[i]
			got = append(got, run{r.Off, r.End, r.WriteLen(), r.Staged, r.Direct, len(r.segments)})
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}

func TestGather(t *testing.T) {
	p := &Plan{mem: pages(1024)}
	for i := range 50 {
		f := File{Size: int64(i)*0x1000 + 0x123}
		for j := range i + 1 {
			f.take(piece(int64(j)<<12, int64(j+1)<<12, addr.PFN(1+(i*37+j*j)%1000)))
		}
		p.Files = append(p.Files, f)
	}
	big := File{Size: 900 << 12}
	big.take(piece(0, 900<<12, 3))
	p.Files = append(p.Files, big)
	p.stage()
	dst := bytes.Repeat([]byte{0xff}, int(p.StagingSize())+10)
	if err := p.Gather(dst); err != nil {
		t.Fatal(err)
	}
	var want []byte
	for _, f := range p.Files {
		for _, r := range f.Runs {
			if r.Staged != int64(len(want)) {
				t.Fatalf("run staged at %d, not %d", r.Staged, len(want))
			}
			for _, s := range r.segments {
				b, err := p.mem.View(s.phys, int(s.n))
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, b...)
			}
			want = append(want, make([]byte, addr.AlignUp(int64(len(want)))-int64(len(want)))...)
		}
	}
	want = append(want, bytes.Repeat([]byte{0xff}, 10)...)
	if !bytes.Equal(dst, want) {
		t.Error("the staging area has other bytes than the runs")
	}
	if err := p.Gather(dst[:p.StagingSize()-1]); !errors.Is(err, ErrStaging) {
		t.Errorf("a staging area too small: %v", err)
	}
	p.mem = pages(100)
	var fault *ram.Fault
	if err := p.Gather(dst); !errors.As(err, &fault) {
		t.Errorf("absent memory: %v", err)
	}
}

func TestReport(t *testing.T) {
	p := &Plan{Deleted: 1, Refused: []*pagecache.Refusal{
		{Reason: pagecache.DAX, Pages: 3}, {Reason: pagecache.DAX}, {Reason: pagecache.BadTree, Pages: 1},
	}}
	f := File{Size: 10}
	f.take(piece(0, 0x1000, 1))
	p.Files = []File{f, {}}
	r := p.Report()
	want := Report{Files: 2, Data: 1, Bytes: 10, Runs: 1, Deleted: 1, Refused: map[pagecache.Reason]uint64{pagecache.BadTree: 1, pagecache.DAX: 4}}
	if !reflect.DeepEqual(r, want) || r.Complete() {
		t.Errorf("%+v, complete: %v", r, r.Complete())
	}
	if p.Refused = nil; !p.Report().Complete() {
		t.Error("a plan without refusals is not complete")
	}
}

// TestUnfit checks that the plans that are made in parallel know which inodes are the file system's own.
func TestUnfit(t *testing.T) {
	whole := Plan{Super: pagecache.Superblock{Type: "ext4"}, Ext4: pagecache.Ext4{Super: ext4.Super{FirstInode: 11, OrphanFile: 12, Incompat: ext4.IncompatEAInode}}}
	part := whole.empty()
	for name, tc := range map[string]struct {
		inode pagecache.Inode
		want  pagecache.Reason
	}{
		"a file":                    {pagecache.Inode{Ino: 13}, 0},
		"the journal":               {pagecache.Inode{Ino: 8}, pagecache.Reserved},
		"the orphans":               {pagecache.Inode{Ino: 12}, pagecache.Reserved},
		"the value of an attribute": {pagecache.Inode{Ino: 13, Flags: pagecache.FlagNoQuota}, pagecache.Reserved},
		"encrypted":                 {pagecache.Inode{Ino: 13, Flags: pagecache.FlagEncrypted}, pagecache.Encrypted},
	} {
		if got := part.unfit(&tc.inode); got != tc.want {
			t.Errorf("%s: %v, want %v", name, got, tc.want)
		}
	}
}
