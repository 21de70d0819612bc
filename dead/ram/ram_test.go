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

// TestGuesses checks that QEMU's q35 is tried first.
func TestGuesses(t *testing.T) {
	const gib = 1 << 30
	for _, tc := range []struct {
		size int64
		want extents
	}{
		{512 << 20, extents{{addr.PhysRange{End: 512 << 20}, 0}}},
		{q35SplitFrom - 4096, extents{{addr.PhysRange{End: q35SplitFrom - 4096}, 0}}},
		{q35SplitFrom, extents{{addr.PhysRange{End: 2 * gib}, 0}, {addr.PhysRange{Start: 4 * gib, End: 4*gib + q35SplitFrom - 2*gib}, 2 * gib}}},
		{8 * gib, extents{{addr.PhysRange{End: 2 * gib}, 0}, {addr.PhysRange{Start: 4 * gib, End: 10 * gib}, 2 * gib}}},
	} {
		if got := guesses(tc.size)[0].extents(tc.size); !slices.Equal(got, tc.want) {
			t.Errorf("%#x: %v, want %v", tc.size, got, tc.want)
		}
	}
}

// TestBoards checks that QEMU's virt is tried first of the machines for arm64, and that each
// guess has all bytes of a file, once.
func TestBoards(t *testing.T) {
	const gib = 1 << 30
	for _, size := range []int64{512 << 20, 3 * gib, 8 * gib} {
		all := (&raw{size: size}).Guesses(Board)
		if want := (extents{{addr.PhysRange{Start: gib, End: gib + addr.Phys(size)}, 0}}); !slices.Equal(all[0].extents(size), want) {
			t.Errorf("%#x: first %v", size, all[0])
		}
		for _, a := range all {
			next := int64(0)
			for _, e := range a.extents(size) {
				if e.off != next || e.phys.Len() == 0 {
					t.Errorf("%#x: %v has %v", size, a, a.extents(size))
				}
				next += int64(e.phys.Len())
			}
			if next != size {
				t.Errorf("%#x: %v has %#x", size, a, next)
			}
		}
	}
}

// writeFile makes a file of pages, each filled with its number.
func writeFile(t testing.TB, pages int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ram")
	var b []byte
	for i := range pages {
		b = append(b, bytes.Repeat([]byte{byte(i)}, addr.PageSize)...)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestView(t *testing.T) {
	path := writeFile(t, 8)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	// As if the machine's memory were split after three pages.
	m, err := mapFile(f, extents{
		{addr.PhysRange{End: 0x3000}, 0},
		{addr.PhysRange{Start: 0x1_0000, End: 0x1_5000}, 0x3000},
	}, image{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		pa    addr.Phys
		n     int
		first byte
		fault addr.Phys // 0 means none
	}{
		{0, 0x3000, 0, 0},
		{0x2fff, 1, 2, 0},
		{0x1_0000, 0x5000, 3, 0},
		{0x1_4fff, 1, 7, 0},
		{0x2fff, 2, 0, 0x3000},
		{0x3000, 1, 0, 0x3000},
		{0xffff, 2, 0, 0xffff},
		{0x1_4000, 0x1001, 0, 0x1_5000},
		{^addr.Phys(0), 1, 0, ^addr.Phys(0)},
	} {
		b, err := m.View(tc.pa, tc.n)
		var fault *Fault
		switch {
		case tc.fault != 0:
			if !errors.As(err, &fault) || fault.Addr != tc.fault {
				t.Errorf("%v, %d bytes: %v, want a fault at %v", tc.pa, tc.n, err, tc.fault)
			}
		case err != nil || len(b) != tc.n || b[0] != tc.first:
			t.Errorf("%v, %d bytes: %d bytes, %v", tc.pa, tc.n, len(b), err)
		}
	}
	if _, err := m.View(0, -1); err == nil {
		t.Error("a negative size was accepted")
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if _, err := m.View(0, 1); err == nil {
		t.Error("closed memory was read")
	}
	if err := m.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestTouched(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ram")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, err := range []error{f.Truncate(64 << 20), write(f, 8<<20), write(f, 40<<20)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	m, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	sparse, ok := m.(Sparse)
	if !ok {
		t.Skip("this system cannot tell holes")
	}
	var total uint64
	found := make(map[addr.Phys]bool)
	for r := range sparse.Touched(addr.PhysRange{End: 64 << 20}) {
		total += r.Len()
		for _, at := range []addr.Phys{8 << 20, 40 << 20} {
			found[at] = found[at] || r.Contains(at, addr.PageSize)
		}
	}
	if !found[8<<20] || !found[40<<20] {
		t.Error("data was missed")
	}
	if total > 32<<20 {
		t.Logf("%d bytes touched: this file system has no holes", total)
	}
}

func write(f *os.File, off int64) error {
	_, err := f.WriteAt(bytes.Repeat([]byte{1}, addr.PageSize), off)
	return err
}

func TestOpenFile(t *testing.T) {
	for name, content := range map[string][]byte{
		"nothing":        {},
		"half a page":    make([]byte, 2048),
		"an ELF core":    append([]byte("\x7fELF"), make([]byte, 4092)...),
		"a kdump file":   append([]byte("KDUMP   "), make([]byte, 4088)...),
		"a LiME capture": append([]byte("EMiL"), make([]byte, 4092)...),
	} {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenFile(path); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := OpenFile(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent file: %v", err)
	}
	m, err := OpenFile(writeFile(t, 2))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// FuzzView: a view has the size asked for and the bytes of the file, or there is
// a fault at an address that is really absent.
func FuzzView(f *testing.F) {
	path := writeFile(f, 8)
	file, err := os.Open(path)
	if err != nil {
		f.Fatal(err)
	}
	extents := extents{{addr.PhysRange{End: 0x3000}, 0}, {addr.PhysRange{Start: 0x1_0000, End: 0x1_5000}, 0x3000}}
	m, err := mapFile(file, extents, image{})
	if err != nil {
		f.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint64(0x2fff), 2)
	f.Add(uint64(0x2fff), 1)
	f.Add(uint64(0x1_0fff), 0x1000)
	f.Add(^uint64(0), 1)
	f.Fuzz(func(t *testing.T, pa uint64, n int) {
		b, err := m.View(addr.Phys(pa), n)
		var fault *Fault
		switch {
		case err == nil && len(b) != n:
			t.Errorf("%d bytes instead of %d", len(b), n)
		case err == nil && n > 0:
			e := extents[0]
			if pa >= uint64(extents[1].phys.Start) {
				e = extents[1]
			}
			if off := int64(pa) - int64(e.phys.Start) + e.off; !bytes.Equal(b, whole[off:off+int64(n)]) {
				t.Errorf("%d bytes at %v are not those of the file", n, addr.Phys(pa))
			}
		case err == nil:
		case !errors.As(err, &fault):
			t.Error(err)
		case n > 0 && (extents[0].phys.Contains(fault.Addr, 1) || extents[1].phys.Contains(fault.Addr, 1)):
			t.Errorf("fault at %v, which is there", fault.Addr)
		}
	})
}
