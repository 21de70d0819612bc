package ram_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/ramtest"
)

// packers are the programs that compress a file, and the extensions that they add to its name.
var packers = []struct{ program, name, end string }{
	{"gzip", "gzip", ".gz"}, {"xz -T1 -1", "xz", ".xz"}, {"zstd -q --long=27", "zstd", ".zst"},
	{"lz4 -q -m", "lz4", ".lz4"}, {"bzip2", "bzip2", ".bz2"},
}

// pack compresses a file with a program.
func pack(t testing.TB, program, path, end string) string {
	t.Helper()
	args := strings.Fields(program)
	if _, err := exec.LookPath(args[0]); err != nil {
		t.Skip(err)
	}
	if out, err := exec.Command(args[0], append(args[1:], "-k", path)...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", program, err, out)
	}
	return path + end
}

// TestPacked checks that a file that a program has compressed gives the bytes of the original file, and that
// a part of it is refused.
func TestPacked(t *testing.T) {
	for _, p := range packers {
		t.Run(p.name, func(t *testing.T) {
			t.Setenv("TMPDIR", t.TempDir())
			model := newModel(11)
			model.excluded = someFrames
			path := pack(t, p.program, write(t, ramtest.ELF{Excluded: someFrames}, model), p.end)
			mem, err := ram.OpenFile(path)
			if err != nil {
				t.Fatal(err)
			}
			model.checkDescription(t, mem, ram.Info{Format: "ELF core, in a " + p.name + " file"})
			model.checkViews(t, mem, 1)
			if err := mem.Close(); err != nil {
				t.Error(err)
			}
			if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
			checkPackedCut(t, path)
		})
	}
}

func checkPackedCut(t *testing.T, path string) {
	stat, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for size := stat.Size() - 1; size > 8; size -= 1 + size/5 {
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		mem, err := ram.OpenFile(path)
		if err == nil {
			mem.Close()
		}
		if !errors.Is(err, ram.ErrFormat) {
			t.Errorf("cut to %d of %d bytes: %v", size, stat.Size(), err)
		}
	}
}

// TestPackedRAM checks that a RAM file is unpacked with its holes, and still has no known arrangement, and
// that a file that was compressed twice is refused.
func TestPackedRAM(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	path := filepath.Join(t.TempDir(), "ram")
	page := bytes.Repeat([]byte("memory! "), addr.PageSize/8)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	const at, size = 5 << 20, 64 << 20
	_, err = f.WriteAt(page, at)
	if err = errors.Join(err, f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	packed := pack(t, "gzip -1", path, ".gz")
	mem, err := ram.OpenFile(packed)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	if raw, ok := mem.(ram.Unarranged); !ok || raw.Bytes() != size {
		t.Errorf("%T of %v", mem, mem.Ranges())
	}
	if got, err := mem.View(at, addr.PageSize); err != nil || !bytes.Equal(got, page) {
		t.Errorf("page: %v", err)
	}
	touched := uint64(0)
	for part := range mem.(ram.Sparse).Touched(mem.Ranges()[0]) {
		touched += part.Len()
	}
	if touched > 1<<20 {
		t.Errorf("%d bytes are written, of one page", touched)
	}
	if _, err := ram.OpenFile(pack(t, "bzip2", packed, ".bz2")); err == nil || !strings.Contains(err.Error(), "compressed twice") {
		t.Error(err)
	}
}

// TestPackedNoRoom checks the error where there is no directory to unpack to.
func TestPackedNoRoom(t *testing.T) {
	path := pack(t, "gzip", write(t, ramtest.LiME{}, newModel(3)), ".gz")
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "none"))
	if _, err := ram.OpenFile(path); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "unpack gzip file") {
		t.Error(err)
	}
}
