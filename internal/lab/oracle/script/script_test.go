package script_test

import (
	"fmt"
	"maps"
	"path"
	"reflect"
	"testing"

	"understudy.dev/understudy/internal/lab/oracle/script"
)

var features = script.Features{Extents: true, ZeroRange: true}

// run does the first operations of a script.
func run(t testing.TB, s *script.Script, count int, see func(script.Op)) {
	t.Helper()
	for range count {
		op := s.Next()
		if see != nil {
			see(op)
		}
		if err := s.Apply(op, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPure checks that a script follows from its seed and thread alone: the guest and the
// host each have one.
func TestPure(t *testing.T) {
	for seed := range uint64(20) {
		var first, second []script.Op
		guest, host := script.New(seed, 3, features, false), script.New(seed, 3, features, true)
		run(t, guest, 1500, func(op script.Op) { first = append(first, op) })
		run(t, host, 1500, func(op script.Op) {
			if again := host.Next(); !reflect.DeepEqual(op, again) {
				t.Fatalf("seed %d: next is %v, then %v", seed, op, again)
			}
			second = append(second, op)
		})
		if !reflect.DeepEqual(first, second) {
			t.Fatalf("seed %d: two scripts differ", seed)
		}
		other := script.New(seed, 4, features, false)
		if op := other.Next(); reflect.DeepEqual(op, first[0]) && reflect.DeepEqual(apply(t, other, op), first[1]) {
			t.Errorf("seed %d: threads 3 and 4 do the same", seed)
		}
	}
}

func apply(t *testing.T, s *script.Script, op script.Op) script.Op {
	if err := s.Apply(op, nil); err != nil {
		t.Fatal(err)
	}
	return s.Next()
}

// TestEveryKind checks that each kind of operation occurs, on each kind of thing.
func TestEveryKind(t *testing.T) {
	seen := make(map[string]int)
	for seed := range uint64(10) {
		run(t, script.New(seed, 0, features, false), 3000, func(op script.Op) {
			what := op.Kind.String()
			switch {
			case op.Kind == script.Fallocate:
				what += fmt.Sprint(op.Mode)
			case op.Kind == script.SetXattr && op.Name == script.Capability:
				what += " capability"
			}
			if op.On.Slot != script.NoSlot && op.Kind != script.Barrier && op.Kind != script.Close {
				what += " held"
			}
			seen[what]++
		})
	}
	for _, want := range []string{
		"create", "mkdir", "symlink", "link", "unlink", "rmdir", "rename", "write", "write held", "store", "truncate", "fallocate0",
		"fallocate1", "fallocate3", "fallocate16", "fallocate17", "chmod", "chown", "utimes", "setxattr", "removexattr",
		"setxattr capability", "fsync", "open", "close", "barrier",
	} {
		if seen[want] == 0 {
			t.Errorf("no %s among %v", want, seen)
		}
	}
}

// TestTree checks the tree against what can be counted in it.
func TestTree(t *testing.T) {
	for seed := range uint64(10) {
		s := script.New(seed, 0, features, true)
		for range 40 {
			run(t, s, 50, nil)
			names := make(map[*script.Node]uint32)
			s.Top.Walk("", func(at string, n *script.Node) {
				for base, child := range n.Children {
					if child.Dir() {
						names[n]++
						if child.Path() != path.Join(at, base) {
							t.Fatalf("%q has path %q", path.Join(at, base), child.Path())
						}
					} else {
						names[child]++
					}
				}
			})
			s.Top.Walk("", func(at string, n *script.Node) {
				want := names[n]
				if n.Dir() {
					want += 2
				}
				if n.Nlink() != want {
					t.Fatalf("seed %d: %q has %d links, want %d", seed, at, n.Nlink(), want)
				}
				if n.File() && n.Content.Size != n.Size {
					t.Fatalf("seed %d: %q has %d bytes and content of %d", seed, at, n.Size, n.Content.Size)
				}
			})
		}
	}
}

// TestDurable checks that what an operation changed does not count as durable until it is
// synced.
func TestDurable(t *testing.T) {
	s := script.New(7, 0, features, false)
	durable, after := 0, 0
	for range 3000 {
		op := s.Next()
		n, err := s.At(op.On)
		if err := s.Apply(op, nil); err != nil {
			t.Fatal(err)
		}
		switch op.Kind {
		case script.Barrier:
			s.Top.Walk("", func(at string, n *script.Node) {
				if !n.Durable() {
					t.Fatalf("%q is not durable after sync", at)
				}
				durable++
			})
		case script.Fsync:
			if err != nil || !n.Durable() {
				t.Fatalf("after %v it is not durable: %v", op, err)
			}
			durable++
		case script.Write, script.Rename, script.Chmod, script.Unlink:
			if n.Durable() {
				t.Fatalf("after %v it is durable", op)
			}
			after++
		}
	}
	if durable < 50 || after < 50 {
		t.Errorf("%d durable, %d not", durable, after)
	}
}

// TestApplyRefuses checks that the model notices what contradicts it.
func TestApplyRefuses(t *testing.T) {
	good := func(n *script.Node) script.Stat {
		return script.Stat{Ino: 99, Mode: n.Mode, Size: n.Size, Nlink: n.Nlink(), UID: n.UID, GID: n.GID}
	}
	for what, spoil := range map[string]func(*script.Stat){
		"links": func(st *script.Stat) { st.Nlink++ },
		"bytes": func(st *script.Stat) { st.Size++ },
		"owner": func(st *script.Stat) { st.UID++ },
		"mode":  func(st *script.Stat) { st.Mode ^= 1 },
		"":      func(*script.Stat) {},
	} {
		s := script.New(1, 0, features, false)
		for {
			op := s.Next()
			if op.Kind != script.Write {
				run(t, s, 1, nil)
				continue
			}
			n, err := s.At(op.On)
			if err != nil {
				t.Fatal(err)
			}
			st := good(n)
			st.Size = max(n.Size, op.Off+op.Len)
			spoil(&st)
			if err := s.Apply(op, []script.Stat{st}); (err != nil) != (what != "") {
				t.Errorf("%q: %v", what, err)
			}
			break
		}
	}
}

// TestContent compares Content with plain bytes, and Sum with itself.
func TestContent(t *testing.T) {
	s := script.New(3, 0, features, true)
	files := make(map[*script.Node][]byte)
	run(t, s, 4000, func(op script.Op) {
		n, err := s.At(op.On)
		if err != nil || !n.File() || op.Kind == script.Open || op.Kind == script.Close {
			return
		}
		b := files[n]
		grow := func(size int64) {
			if size > int64(len(b)) {
				b = append(b, make([]byte, size-int64(len(b)))...)
			}
		}
		switch op.Kind {
		case script.Write, script.Store:
			grow(op.Off + op.Len)
			s.Fill(b[op.Off:op.Off+op.Len], op, 0)
		case script.Truncate:
			grow(op.Off)
			b = b[:op.Off:op.Off]
		case script.Fallocate:
			if op.Mode&script.KeepSize == 0 {
				grow(op.Off + op.Len)
			}
			if op.Mode&(script.PunchHole|script.ZeroRange) != 0 && op.Off < int64(len(b)) {
				clear(b[op.Off:min(int64(len(b)), op.Off+op.Len)])
			}
		}
		files[n] = b
	})
	if len(files) < 100 {
		t.Fatalf("only %d files", len(files))
	}
	for n := range maps.Keys(files) {
		plain := files[n]
		if int64(len(plain)) != n.Size {
			t.Fatalf("%d bytes, want %d", n.Size, len(plain))
		}
		sum := script.NewSummer()
		for i := 0; i < len(plain); i += script.PageSize {
			sum.Page(int64(i/script.PageSize), plain[i:min(len(plain), i+script.PageSize)])
		}
		for i := range plain {
			if n.Content.At(int64(i)) != plain[i] {
				t.Fatalf("byte %d differs", i)
			}
		}
		if sum.Sum(n.Size) != n.Content.Sum() {
			t.Fatal("the sum of the pages differs")
		}
	}
}
