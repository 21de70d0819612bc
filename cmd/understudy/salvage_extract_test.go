package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/fixture/record"
)

func TestExtractAgainstGuest(t *testing.T) {
	for name, spec := range map[string]fixture.Spec{"basic": fixture.Basic, "writeback": fixture.Writeback} {
		t.Run(name, func(t *testing.T) {
			image := crashImage(t, spec)
			checkExtract(t, image, image.RAM)
		})
	}
}

// TestExtractFromDumps checks that dumps which guests made of themselves, with LiME and
// with kdump, give every file as the guest had it, and the same as their RAM files.
func TestExtractFromDumps(t *testing.T) {
	for _, spec := range []fixture.Spec{fixture.Captured, fixture.Kdumped} {
		t.Run(spec.Dump, func(t *testing.T) {
			image := crashImage(t, spec)
			fromRAM, fromDump := checkExtract(t, image, image.RAM), checkExtract(t, image, image.Dump)
			names := make(map[string]bool)
			if err := filepath.WalkDir(fromRAM, func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				name, err := filepath.Rel(fromRAM, path)
				names[name] = true
				if name != inventory.Manifest {
					compareFiles(t, filepath.Join(fromDump, name), path)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			compareNames(t, fromDump, names)
		})
	}
}

// checkExtract extracts everything from the memory of an image, compares it with what the
// guest reported, and returns the directory.
func checkExtract(t *testing.T, image *fixture.Image, memory string) string {
	t.Helper()
	truth := truths(image)
	dir := filepath.Join(t.TempDir(), "out")
	got := command(t, "salvage", "extract", memory, "-o", dir, "--all", "--hash")
	if got.err != nil || got.errs != "" && os.Geteuid() == 0 {
		t.Fatal(got.err, got.errs)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	r := report(t, string(raw))
	whole, parts, named := 0, 0, map[string]bool{"manifest.json": true}
	for _, fsys := range r.FileSystems {
		for i := range fsys.Files {
			f := &fsys.Files[i]
			want, ok := truth[[2]string{fsys.UUID, inventory.TextOf(f.Path, f.PathBase64)}]
			if !ok {
				t.Errorf("%s: %s is not a file of the guest", fsys.Device, f.Path)
				continue
			}
			name := inventory.TextOf(f.Written.Name, f.Written.NameBase64)
			named[name] = true
			for _, l := range f.Links {
				named[fsys.Device+"/"+inventory.TextOf(l.Path, l.PathBase64)] = true
			}
			data, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(data)
			if hex.EncodeToString(sum[:]) != f.Written.SHA256 || f.Written.Of != "file" {
				t.Errorf("%s: the manifest has another hash", name)
			}
			if len(f.Absent) == 0 {
				whole++
				if f.Written.SHA256 != want.SHA256 {
					t.Errorf("%s is not what the guest had", name)
				}
			} else {
				parts++
			}
			checkPages(t, f, want, data)
			info, err := os.Lstat(filepath.Join(dir, name))
			if err != nil || octal(uint32(info.Mode().Perm())) != octal(want.Mode&0o777) || !info.ModTime().Equal(want.Mtime) {
				t.Errorf("%s: %v %v, want %o %v", name, info.Mode(), info.ModTime(), want.Mode, want.Mtime)
			}
		}
	}
	if whole+parts == 0 || whole == 0 {
		t.Errorf("%d whole and %d partial files", whole, parts)
	}
	compareNames(t, dir, named)
	compareArchive(t, memory, dir)
	t.Logf("%d whole and %d partial files as the guest had them; %s", whole, parts, got.out)
	return dir
}

// checkPages checks that each page that the manifest has from memory is as the guest had
// it, and that every byte of the file is accounted for once.
func checkPages(t *testing.T, f *inventory.FileReport, want record.File, data []byte) {
	t.Helper()
	const unsaved, clean, absent, hole, refused = 1, 2, 3, 4, 5
	kinds := make([]byte, len(data))
	mark := func(ranges []inventory.Range, kind byte) {
		for _, r := range ranges {
			for at := r[0]; at < r[0]+r[1]; at++ {
				if kinds[at] != 0 {
					t.Fatalf("%s: byte %d is accounted for twice", f.Path, at)
				}
				kinds[at] = kind
			}
		}
	}
	mark(f.Ranges, unsaved)
	mark(f.Clean, clean)
	mark(f.Absent, absent)
	mark(f.Holes, hole)
	for _, r := range f.Refused {
		mark([]inventory.Range{{r.Offset, r.Length}}, refused)
	}
	if i := bytes.IndexByte(kinds, 0); i >= 0 {
		t.Errorf("%s: byte %d is not accounted for", f.Path, i)
	}
	for n := range (len(data) + record.Unit - 1) / record.Unit {
		unit := addr.Span{Off: int64(n) * record.Unit, End: int64(n+1) * record.Unit}.Clip(int64(len(data)))
		if kind := kinds[unit.Off:unit.End]; bytes.IndexByte(kind, absent) >= 0 || bytes.IndexByte(kind, refused) >= 0 {
			continue
		}
		got, told := data[unit.Off:unit.End], want.Sums[n]
		if _, ok := want.Sums[n]; !ok {
			told = crc32.Checksum(make([]byte, len(got)), record.Castagnoli)
		}
		if crc32.Checksum(got, record.Castagnoli) != told {
			t.Errorf("%s: bytes %v are not what the guest had", f.Path, unit)
		}
	}
	// What the guest wrote since the last sync was not on the disk then. The kernel may
	// have written it back since, but then it is clean, and still in memory.
	for _, n := range want.Changed {
		if at := n * record.Unit; at < len(kinds) && kinds[at] == absent {
			t.Errorf("%s: byte %d was changed, and is absent", f.Path, at)
		}
	}
}

// compareNames checks that a directory has exactly the files of these names.
func compareNames(t *testing.T, dir string, named map[string]bool) {
	t.Helper()
	n := 0
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		n++
		if name, _ := filepath.Rel(dir, path); !named[name] {
			t.Errorf("%q should not be there", name)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n != len(named) {
		t.Errorf("%d files instead of %d", n, len(named))
	}
}

// compareArchive checks that an archive has the same files as a directory.
func compareArchive(t *testing.T, image, dir string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "out.tar.zst")
	if got := command(t, "salvage", "extract", image, "--archive", name, "--all"); got.err != nil {
		t.Fatal(got.err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	n := 0
	for r := tar.NewReader(z); ; n++ {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == inventory.Manifest || h.Typeflag == tar.TypeLink {
			continue
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		other, err := os.ReadFile(filepath.Join(dir, h.Name))
		if err != nil || !bytes.Equal(data, other) {
			t.Errorf("%s differs in archive and directory: %v", h.Name, err)
		}
		if info, err := os.Stat(filepath.Join(dir, h.Name)); err == nil && !info.ModTime().Equal(h.ModTime) {
			t.Errorf("%s has another time in archive and directory", h.Name)
		}
	}
	if n < 10 {
		t.Errorf("%d entries in the archive", n)
	}
}

// TestExtractElsewhere checks that an archive, and the manifest, can be written to standard
// output.
func TestExtractElsewhere(t *testing.T) {
	image := crashImage(t, fixture.Writeback)
	got := command(t, "salvage", "extract", image.RAM, "--archive", "-")
	if got.err != nil || !strings.HasPrefix(got.out, "\x28\xb5\x2f\xfd") || !strings.Contains(got.errs, "standard output") {
		t.Errorf("%.10q, %s, %v", got.out, got.errs, got.err)
	}
	dir := filepath.Join(t.TempDir(), "out")
	got = command(t, "salvage", "extract", image.RAM, "-o", dir, "--json", "--path", "w/**")
	raw, err := os.ReadFile(filepath.Join(dir, inventory.Manifest))
	if err = errors.Join(got.err, err); err != nil {
		t.Fatal(err)
	}
	if a, b := report(t, got.out), report(t, string(raw)); !reflect.DeepEqual(a, b) || len(a.FileSystems[0].Files) == 0 {
		t.Error("standard output and manifest differ, or are empty")
	} else if w := b.FileSystems[0].Files[0].Written; w.SHA256 != "" || w.Of != "" {
		t.Errorf("nobody asked for a hash: %+v", w)
	}
}

func TestExtractInterrupted(t *testing.T) {
	image := crashImage(t, fixture.Basic)
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("interrupted"))
	dir := filepath.Join(t.TempDir(), "out")
	got := commandIn(t, ctx, "salvage", "extract", image.RAM, "-o", dir)
	if got.err == nil || !strings.Contains(got.err.Error(), "interrupted") {
		t.Errorf("%v", got.err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something is left: %v", err)
	}
}
