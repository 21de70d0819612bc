package extract

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/dead/pagecache"
)

func file(size int64) *inventory.File {
	when := time.Unix(1_000_000_000, 123_000_000)
	i := &pagecache.Inode{Ino: 12, Mode: 0o100640, Size: size, Atime: when, Mtime: when, UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}
	return &inventory.File{Inode: i}
}

func content(off int64, b string) Body {
	return func(data func(int64, []byte) error) error { return data(off, []byte(b)) }
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	if err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && path != dir {
			names = append(names, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return names
}

func TestDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "out")
	d, err := NewDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Put("vda/x/f", file(10), content(4, "abc")); err != nil {
		t.Fatal(err)
	}
	if err := d.Link("vda/y/g", "vda/x/f"); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(list(t, dir), " "); !strings.HasPrefix(got, ".partial ") || strings.Contains(got, " vda") {
		t.Errorf("before the end there is %s", got)
	}
	if err := d.Finish([]byte("{}")); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(list(t, dir), " "); got != "manifest.json vda vda/x vda/x/f vda/y vda/y/g" {
		t.Errorf("there is %s", got)
	}
	b, err := os.ReadFile(filepath.Join(dir, "vda/y/g"))
	if err != nil || string(b) != "\x00\x00\x00\x00abc\x00\x00\x00" {
		t.Errorf("%q, %v", b, err)
	}
	info, err := os.Stat(filepath.Join(dir, "vda/x/f"))
	if err != nil || info.Mode() != 0o640 || !info.ModTime().Equal(file(0).Mtime) {
		t.Errorf("%v %v, %v", info.Mode(), info.ModTime(), err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := d.Abort(); err != nil || len(list(t, dir)) != 6 {
		t.Errorf("an end was undone: %v", err)
	}
}

// TestDirEscape checks that the file system itself keeps names inside, should a name
// ever get here that inventory.Namer did not make.
func TestDirEscape(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	d, err := NewDir(out)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../x", "/tmp/understudy-escape", "vda/../../../x", "a\x00b", strings.Repeat("y", 300)} {
		if err := d.Put(name, file(1), content(0, "x")); err == nil {
			t.Errorf("%q was written", name)
		}
	}
	if err := os.Symlink("/tmp", filepath.Join(out, partial, "vda")); err != nil {
		t.Fatal(err)
	}
	if err := d.Put("vda/understudy-escape", file(1), content(0, "x")); err == nil {
		t.Error("a symbolic link was followed out of the directory")
	}
	if err := d.Abort(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(out); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something is left: %v", err)
	}
}

func TestDirAbort(t *testing.T) {
	for _, existed := range []bool{false, true} {
		out := filepath.Join(t.TempDir(), "out")
		if existed {
			if err := os.Mkdir(out, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		d, err := NewDir(out)
		if err != nil {
			t.Fatal(err)
		}
		broken := errors.New("broken")
		if err := d.Put("vda/whole", file(1), content(0, "x")); err != nil {
			t.Fatal(err)
		}
		if err := d.Put("vda/f", file(1), func(func(int64, []byte) error) error { return broken }); !errors.Is(err, broken) {
			t.Errorf("%v", err)
		}
		if err := d.Abort(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(out); existed != (err == nil) || existed && len(list(t, out)) > 0 {
			t.Errorf("something is left or gone: %v", err)
		}
	}
}

func TestDirNotEmpty(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := NewDir(dir); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("%v", err)
	}
	if got := list(t, dir); len(got) != 1 {
		t.Errorf("%v", got)
	}
}

func TestArchive(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "out.tar.zst")
	a, err := NewArchive(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		a.Put("vda/\xff", file(10), content(4, "abc")), a.Link("vda/g", "vda/\xff"), a.Put("vda/empty", file(0), func(func(int64, []byte) error) error { return nil }),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Put("vda/huge", file(1<<62), content(0, "x")); !errors.Is(err, ErrSkip) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(name); err == nil {
		t.Error("it has its name before the end")
	}
	if err := a.Finish([]byte("{}")); err != nil {
		t.Fatal(err)
	}
	if got := list(t, dir); len(got) != 1 {
		t.Errorf("%v", got)
	}
	if _, err := NewArchive(name); !errors.Is(err, fs.ErrExist) {
		t.Errorf("an archive was to be replaced: %v", err)
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
	var got []string
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, h.Name+"="+string(b)+h.Linkname)
	}
	want := "vda/\xff=\x00\x00\x00\x00abc\x00\x00\x00 vda/g=vda/\xff vda/empty= manifest.json={}"
	if strings.Join(got, " ") != want {
		t.Errorf("%q", got)
	}
}

func TestArchiveAbort(t *testing.T) {
	dir := t.TempDir()
	a, err := NewArchive(filepath.Join(dir, "out.tar.zst"))
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Put("f", file(1), content(0, "x")); err != nil {
		t.Fatal(err)
	}
	if err := a.Abort(); err != nil || len(list(t, dir)) > 0 {
		t.Errorf("%v, left: %v", err, list(t, dir))
	}
}

func TestArchiveFull(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("there is no /dev/full: ", err)
	}
	defer full.Close()
	a, err := StreamArchive(full)
	if err != nil {
		t.Fatal(err)
	}
	err = a.Put("f", file(1), content(0, "x"))
	if err = errors.Join(err, a.Finish(bytes.Repeat([]byte("x"), 1<<20))); err == nil || !strings.Contains(err.Error(), "free space") {
		t.Errorf("%v", err)
	}
}

func TestBoth(t *testing.T) {
	got := Both([]addr.Span{{End: 10}, {Off: 20, End: 30}}, []addr.Span{{Off: 5, End: 25}, {Off: 26, End: 27}, {Off: 40, End: 50}})
	want := []addr.Span{{Off: 5, End: 10}, {Off: 20, End: 25}, {Off: 26, End: 27}}
	if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("%v", got)
	}
}
