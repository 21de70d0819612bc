package salvage_test

import (
	"hash/crc32"
	"io"
	"os"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/fixture/record"
)

// superOf finds the file system that a fixture calls by a name.
func superOf(t testing.TB, c *pagecache.Cache, image *fixture.Image, name string) *pagecache.Superblock {
	t.Helper()
	format := image.Format(name)
	var found *pagecache.Superblock
	for s, err := range c.Superblocks() {
		switch {
		case err != nil:
			t.Fatal(err)
		case s.Type != format.Type || (format.UUID != "" && s.UUID.String() != format.UUID):
		case format.UUID == "" && !mountedAt(c, s, "/mnt/"+name):
		case found != nil:
			t.Fatalf("%s is twice in memory", name)
		default:
			found = s
		}
	}
	if found == nil {
		t.Fatalf("%s is not in memory", name)
	}
	return found
}

func mountedAt(c *pagecache.Cache, s *pagecache.Superblock, path string) bool {
	for at, err := range c.MountPoints(s) {
		if err == nil && at.Path == path {
			return true
		}
	}
	return false
}

// result is what a check of one file system found to be exact.
type result struct {
	files, deleted int
	bytes          int64 // of those that were checked, from memory
	folio          int64 // bytes of the largest folio
	writeback      int64 // bytes in pages under writeback
}

// checkUnits checks that all bytes in the plan are as the guest said, and that every
// byte that the guest changed is in the plan or, if the kernel was writing back by
// itself, on the disk.
func checkUnits(t *testing.T, p *salvage.Plan, staged []byte, truth []record.File, onDisk func() map[uint32]bool) result {
	t.Helper()
	planned := make(map[addr.Ino]*salvage.File)
	for i := range p.Files {
		planned[p.Files[i].Ino] = &p.Files[i]
	}
	names := make(map[addr.Ino][]string)
	for _, f := range truth {
		names[addr.Ino(f.Ino)] = append(names[addr.Ino(f.Ino)], string(f.Path))
	}
	var r result
	for _, want := range truth {
		switch {
		case want.Mode&pagecache.ModeType != pagecache.ModeRegular:
			continue
		case want.NLink == 0:
			r.deleted++
			continue
		}
		r.files++
		f := planned[addr.Ino(want.Ino)]
		covered := make(map[int]bool)
		if f != nil {
			if err := sameAttributes(f, want, names[f.Ino]); err != nil {
				t.Errorf("%q: %v", want.Path, err)
			}
			for i := range f.Runs {
				r.bytes += checkRun(t, &f.Runs[i], staged, want, covered)
			}
		}
		missing := slices.DeleteFunc(slices.Clone(want.Changed), func(n int) bool {
			return covered[n] || (onDisk != nil && onDisk()[sectorSum(want, n)])
		})
		if len(missing) > 0 {
			t.Errorf("%q (inode %d, %d bytes, in plan: %v): changed units %v are missing", want.Path, want.Ino, want.Size, f != nil, missing)
		}
	}
	for ino, f := range planned {
		if names[ino] == nil {
			t.Errorf("inode %d, %q, is in the plan, and the guest had no such file", ino, f.Path)
		}
	}
	if r.deleted != p.Deleted {
		t.Errorf("%d deleted files instead of %d", p.Deleted, r.deleted)
	}
	return r
}

// sectorSum is the checksum of a unit as it is on a disk, where zeros follow the
// end of the file.
func sectorSum(f record.File, n int) uint32 {
	length := min(record.Unit, f.Size-int64(n)*record.Unit)
	return crc32.Update(f.Sums[n], record.Castagnoli, make([]byte, record.Unit-length))
}

// unitsOf returns the checksums of all units of a disk. The guests' content is
// random: what has the same checksum is the same.
func unitsOf(t *testing.T, path string) map[uint32]bool {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	units := make(map[uint32]bool)
	buf := make([]byte, 1<<20)
	for {
		n, err := io.ReadFull(f, buf)
		for off := 0; off+record.Unit <= n; off += record.Unit {
			units[crc32.Checksum(buf[off:off+record.Unit], record.Castagnoli)] = true
		}
		if err != nil {
			return units
		}
	}
}

// checkRun checks that the bytes of a run are the file's own, and records in covered which units it has.
func checkRun(t *testing.T, r *salvage.Run, staged []byte, want record.File, covered map[int]bool) (checked int64) {
	t.Helper()
	if r.Off%record.Unit != 0 || (r.End%record.Unit != 0 && r.End != want.Size) {
		t.Errorf("%q has %d bytes and a run at %v", want.Path, want.Size, r.Span)
		return 0
	}
	for off := r.Off; off < r.End; off += record.Unit {
		data := staged[r.Staged+off-r.Off:][:min(record.Unit, r.End-off)]
		number := int(off / record.Unit)
		sum, ok := want.Sums[number]
		if !ok {
			sum = crc32.Checksum(make([]byte, len(data)), record.Castagnoli)
		}
		if crc32.Checksum(data, record.Castagnoli) != sum {
			t.Errorf("%q (inode %d): %d bytes at %d differ", want.Path, want.Ino, len(data), off)
		}
		covered[number] = true
		checked += int64(len(data))
	}
	return checked
}
