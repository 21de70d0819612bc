package ram

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/addr"
)

// scattered is memory in two pieces, with a hole between them.
func scattered(t *testing.T) Memory {
	t.Helper()
	path := filepath.Join(t.TempDir(), "mem")
	content := make([]byte, 5<<20)
	for i := range content {
		content[i] = byte(i>>12 + i)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := OpenRanges(path, []addr.PhysRange{{Start: 0x1000, End: 0x9f000}, {Start: 0x10_0000, End: 0x4f_0000}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// TestCore checks that a core that was written is the same memory when it is opened, whatever was in the file
// before and still is after the core.
func TestCore(t *testing.T) {
	m := scattered(t)
	path := filepath.Join(t.TempDir(), "core")
	if err := os.WriteFile(path, bytes.Repeat([]byte("swap"), 2<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := WriteCore(f, m); err != nil {
		t.Fatal(err)
	}
	got, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if !slices.Equal(got.Ranges(), m.Ranges()) {
		t.Fatalf("memory at %v; want %v", got.Ranges(), m.Ranges())
	}
	for _, r := range m.Ranges() {
		a, err := got.View(r.Start, int(r.Len()))
		b, err2 := m.View(r.Start, int(r.Len()))
		if err := errors.Join(err, err2); err != nil || !bytes.Equal(a, b) {
			t.Errorf("memory at %v is another: %v", r, err)
		}
	}
	if info := got.(Described).Info(); info.Incomplete || info.Truncated || info.Excluded != 0 {
		t.Errorf("it is %+v", info)
	}
}

// full is a file with room for a number of bytes.
type full struct {
	*os.File
	room int64
}

var errFull = errors.New("full")

func (f *full) WriteAt(b []byte, off int64) (int, error) {
	if off+int64(len(b)) > f.room {
		return 0, errFull
	}
	return f.File.WriteAt(b, off)
}

// TestCoreBrokenOff checks that a core that could not be written to its end is none, even where an older one was.
func TestCoreBrokenOff(t *testing.T) {
	m := scattered(t)
	path := filepath.Join(t.TempDir(), "core")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := WriteCore(f, m); err != nil {
		t.Fatal(err)
	}
	if s, err := f.Stat(); err != nil || s.Size() != CoreSize(m.Ranges()) {
		t.Errorf("it has %v bytes; want %d: %v", s, CoreSize(m.Ranges()), err)
	}
	if err := WriteCore(&full{f, 3 << 20}, m); !errors.Is(err, errFull) {
		t.Errorf("it does not fit, and the error is %v", err)
	}
	head := make([]byte, 4)
	if _, err := f.ReadAt(head, 0); err != nil || string(head) == elfMagic {
		t.Errorf("it begins with %x: %v", head, err)
	}
}
