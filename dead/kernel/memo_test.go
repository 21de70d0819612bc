package kernel

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/internal/lab/kerneltest"
)

// tiny is a kernel with a structure whose member has this offset, in bytes.
func tiny(t testing.TB, off uint32) *kerneltest.Machine {
	u32 := &btf.Int{Name: "u32", Size: 4}
	m := kerneltest.New(t)
	m.Finish(
		&btf.Struct{Name: "page", Size: kerneltest.PageStruct, Members: []btf.Member{{Name: "flags", Type: u32}}},
		&btf.Struct{Name: "s", Size: 16, Members: []btf.Member{{Name: "m", Type: u32, Offset: btf.Bits(8 * off)}}},
		&btf.Enum{Name: "color", Size: 4, Values: []btf.EnumValue{{Name: "RED", Value: 7}}},
	)
	return m
}

// askAll asks everything that tiny can answer.
func askAll(t *testing.T, k *Kernel, off int) {
	t.Helper()
	types := k.Types()
	for range 2 { // the second time from what was learned
		if f := types.Layout("s").Field("m"); f != (Field{Off: off, Size: 4}) {
			t.Errorf("s.m is %v", f)
		}
		if l := types.Layout("s"); l.Has("absent") || l.Err() != nil || l.Size != 16 {
			t.Errorf("s has a member that it has not, %v, or %d bytes", l.Err(), l.Size)
		}
		if l := types.Layout("absent"); !errors.Is(l.Err(), ErrNotFound) {
			t.Errorf("absent: %v", l.Err())
		}
		if v, err := types.Enum("color", "RED"); v != 7 || err != nil {
			t.Errorf("RED is %d, %v", v, err)
		}
		if _, err := types.Enum("color", "BLUE"); !errors.Is(err, ErrNotFound) {
			t.Errorf("BLUE: %v", err)
		}
		if at, err := k.Symbol("linux_banner"); err != nil || at == 0 {
			t.Errorf("linux_banner at %v, %v", at, err)
		}
		if _, err := k.Symbol("absent"); !errors.Is(err, ErrNotFound) {
			t.Errorf("absent: %v", err)
		}
	}
}

func mustFind(t testing.TB, m *kerneltest.Machine, options ...Option) *Kernel {
	t.Helper()
	k, err := Find(m, options...)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// kept makes a memo of tiny, and returns its file.
func kept(t *testing.T, dir string, m *kerneltest.Machine) string {
	t.Helper()
	k := mustFind(t, m, KeepIn(dir))
	askAll(t, k, 4)
	if err := k.Keep(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatalf("kept %v, %v", files, err)
	}
	return files[0]
}

// TestMemo checks that what was learned is used again, without reading the tables, and
// that nothing is written if nothing is new.
func TestMemo(t *testing.T) {
	m, dir := tiny(t, 4), t.TempDir()
	path := kept(t, dir, m)
	k := mustFind(t, m, KeepIn(dir))
	unread := errors.New("it is read again")
	k.symbols.index = func() (*symbolIndex, error) { return nil, unread }
	k.types.decoded = func() (decodedTypes, error) { return decodedTypes{}, unread }
	askAll(t, k, 4)
	if err := k.types.Layout("new").Err(); !errors.Is(err, unread) {
		t.Errorf("a new question: %v", err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := k.Keep(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("it was written without news")
	}
	if k := mustFind(t, m); k.Keep() != nil {
		t.Error("a kernel without a directory was to be kept")
	}
}

// TestMemoOfOthers checks that what was learned of other bytes is not used, even if
// they are said to be of the same build.
func TestMemoOfOthers(t *testing.T) {
	dir := t.TempDir()
	path := kept(t, dir, tiny(t, 4))
	k := mustFind(t, tiny(t, 8), KeepIn(dir))
	if k.memo.path != path {
		t.Fatalf("kept in %s", k.memo.path)
	}
	askAll(t, k, 8)
	if err := k.Keep(); err != nil {
		t.Fatal(err)
	}
	for _, off := range []uint32{4, 8} { // both are known by now
		k := mustFind(t, tiny(t, off), KeepIn(dir))
		k.types.decoded = func() (decodedTypes, error) { return decodedTypes{}, errors.New("it is read again") }
		if f := k.Types().Layout("s").Field("m"); f.Off != int(off) {
			t.Errorf("%v instead of %d", f, off)
		}
	}
	// The same goes for another name in the symbol table.
	m := tiny(t, 4)
	k = mustFind(t, m)
	names, err := k.note.symbol("kallsyms_names")
	if err != nil {
		t.Fatal(err)
	}
	b, err := k.Bytes(names, 1024)
	if err != nil {
		t.Fatal(err)
	}
	m.Put(names+addr.Virt(strings.Index(string(b), "linux_banner")), []byte("linux_BANNER"))
	if _, err := Find(m, KeepIn(dir)); !errors.Is(err, ErrNotFound) {
		t.Errorf("a symbol that is gone: %v", err)
	}
}

// TestBadMemo checks that a damaged file is ignored, and replaced.
func TestBadMemo(t *testing.T) {
	m := tiny(t, 4)
	for name, spoil := range map[string]func(good []byte) []byte{
		"empty":           func([]byte) []byte { return nil },
		"cut off":         func(b []byte) []byte { return b[:len(b)/2] },
		"without its end": func(b []byte) []byte { return b[:len(b)-1] },
		"longer":          func(b []byte) []byte { return append(b, ' ') },
		"huge":            func(b []byte) []byte { return append(b, make([]byte, maxMemo)...) },
		"a digit changed": func(b []byte) []byte { return []byte(strings.Replace(string(b), "[4,4]", "[8,4]", 1)) },
		"other code":      func(b []byte) []byte { b[len(memoMagic)+1] ^= 1; return b },
		"other magic":     func(b []byte) []byte { b[0] ^= 1; return b },
		"not JSON":        func([]byte) []byte { return []byte(memoHead([]byte("{")) + "{") },
		"no answers":      func([]byte) []byte { return sealed(`{"answers":{"` + strings.Repeat("00", 32) + `":null}}`) },
		"odd digest":      func([]byte) []byte { return sealed(`{"answers":{"00":{}}}`) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := kept(t, dir, m)
			good, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := parseMemo(good); err != nil {
				t.Fatalf("the good one: %v", err)
			}
			if err := os.WriteFile(path, spoil(append([]byte(nil), good...)), 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := readMemo(path); err == nil {
				t.Error("it was believed")
			}
			if kept(t, dir, m); t.Failed() {
				return
			}
			if again, err := os.ReadFile(path); err != nil || string(again) != string(good) {
				t.Errorf("it was not replaced: %v", err)
			}
		})
	}
}

func sealed(body string) []byte { return []byte(memoHead([]byte(body)) + body) }

// TestMemoCannotBeKept checks that the kernel is found even if nothing can be kept, and
// that Keep says so.
func TestMemoCannotBeKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	k := mustFind(t, tiny(t, 4), KeepIn(filepath.Join(file, "dir")))
	askAll(t, k, 4)
	if err := k.Keep(); err == nil {
		t.Error("it was kept")
	}
}

func TestBuild(t *testing.T) {
	k := mustFind(t, tiny(t, 4))
	for id, want := range map[string]string{
		"0123abcd":                "build-0123abcd",
		"":                        "uname-",
		"../../etc/passwd":        "uname-",
		"ABC":                     "uname-",
		strings.Repeat("a", 1000): "uname-",
	} {
		k.note.values["BUILD-ID"] = id
		if got, err := k.build(); err != nil || !strings.HasPrefix(got, want) || len(got) > 80 {
			t.Errorf("%q: %s, %v", id, got, err)
		}
	}
}

// FuzzMemo checks that a memo whose first line is right can neither make a field lie outside of its
// structure, nor make anything panic.
func FuzzMemo(f *testing.F) {
	m := tiny(f, 4)
	k := mustFind(f, m)
	raw, err := k.Bytes(k.Symbols("__start_BTF")[0], int(k.Symbols("__stop_BTF")[0]-k.Symbols("__start_BTF")[0]))
	if err != nil {
		f.Fatal(err)
	}
	about, err := digestOf([]byte("types"), raw).MarshalText()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"tables":[1,2,3,4,5,6],"answers":{"` + string(about) + `":{"size s":[16],"field s m":[8,4],"enum color RED":[]}}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		parseMemo(body)
		known, err := parseMemo(sealed(string(body)))
		if err != nil {
			return
		}
		types, err := newTypes(raw, nil, &memo{path: "x", known: *known})
		if err != nil {
			return
		}
		askTypes(t, types, "s", "m")
		types.Enum("color", "RED")
		(&memo{known: *known}).tablesFrom(0)
	})
}
