package salvage

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
)

// letters is a disk of which each byte says in which KiB it is, and that cannot be read from a place on.
type letters struct{ size, bad int64 }

func (d letters) ReadAt(b []byte, off int64) (int, error) {
	if off+int64(len(b)) > d.bad && off < d.size {
		return 0, errors.New("a bad sector")
	}
	if off+int64(len(b)) > d.size {
		return 0, io.EOF
	}
	for i := range b {
		b[i] = byte('a' + (off+int64(i))/1024%26)
	}
	return len(b), nil
}

// TestFetch checks that what memory does not have of a file of XFS is read from where memory says that it is, that it is staged in its
// place among what memory has, and that a file with too much of it, or with something that cannot be read, is left as it was.
func TestFetch(t *testing.T) {
	mapped := func(off, end, disk int64) pagecache.Mapped {
		return pagecache.Mapped{Span: addr.Span{Off: off, End: end}, Disk: disk}
	}
	disk := letters{size: 1 << 40, bad: 1 << 30}
	file := func(size int64, on []pagecache.Mapped, pieces ...pagecache.Piece) File {
		f := File{Size: size, Metadata: &Metadata{Mapped: on}}
		for _, p := range pieces {
			f.take(p)
		}
		return f
	}
	p := &Plan{mem: pages(100), Super: pagecache.Superblock{Type: "xfs"}, Files: []File{
		file(9000, []pagecache.Mapped{mapped(1024, 4096, 1024), mapped(8192, 9000, 25<<10)}, piece(0, 1024, 1), piece(4096, 8192, 2)),
		file(8<<30, []pagecache.Mapped{mapped(4096, 4<<30, 0), mapped(4<<30, 8<<30, 4<<30)}, piece(0, 4096, 3)),
		file(8192, []pagecache.Mapped{mapped(4096, 8192, 1<<30)}, piece(0, 4096, 3)),
		file(2048, []pagecache.Mapped{mapped(0, 2048, 2048)}),
		{Size: 100},
	}}
	p.stage()
	was := slices.Clone(p.Files)
	bytesBefore := p.Report().Bytes
	p.fetch(disk)
	for _, n := range []int{1, 2, 4} {
		if len(p.Files[n].Runs) != len(was[n].Runs) || n < 4 && len(p.Files[n].Metadata.Mapped) == 0 {
			t.Errorf("file %d: %+v", n, p.Files[n])
		}
	}
	dst := make([]byte, p.StagingSize())
	if err := p.Gather(dst); err != nil {
		t.Fatal(err)
	}
	content := func(f *File) []byte {
		out := make([]byte, f.Size)
		for _, r := range f.Runs {
			copy(out[r.Off:r.End], dst[r.Staged:])
		}
		return out
	}
	repeat := func(letter byte, n int) []byte { return bytes.Repeat([]byte{letter}, n) }
	for n, want := range map[int][]byte{
		0: slices.Concat(repeat(1, 1024), repeat('b', 1024), repeat('c', 1024), repeat('d', 1024), repeat(2, 4096), repeat('z', 808)),
		3: slices.Concat(repeat('c', 1024), repeat('d', 1024)),
	} {
		if got := content(&p.Files[n]); !bytes.Equal(got, want) || len(p.Files[n].Metadata.Mapped) > 0 {
			t.Errorf("file %d has other bytes: %q", n, got)
		}
	}
	if got := p.Report().Bytes; got != bytesBefore {
		t.Errorf("%d bytes are unsaved, and were %d", got, bytesBefore)
	}
	size := p.StagingSize()
	if p.fetch(disk); p.StagingSize() != size {
		t.Error("once more, and there is more")
	}
	other := &Plan{Super: pagecache.Superblock{Type: "btrfs"}, Files: []File{file(2048, []pagecache.Mapped{mapped(0, 2048, 2048)})}}
	if other.fetch(disk); len(other.Files[0].Runs) > 0 {
		t.Error("btrfs has addresses of its own")
	}
}
