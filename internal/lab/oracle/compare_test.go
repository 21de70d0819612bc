package oracle

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"understudy.dev/understudy/internal/lab/fixture/record"
	"understudy.dev/understudy/internal/lab/oracle/page"
	"understudy.dev/understudy/internal/lab/oracle/script"
)

const begun = 1_700_000_000 // mtime of everything, in seconds

// pretend does the first operations of a script as a guest would report them,
// and returns what that guest would have left when it died within the next one.
func pretend(t testing.TB, seed uint64, count int) *Crashed {
	t.Helper()
	features := script.Features{Extents: true, ZeroRange: true}
	c := &Crashed{Root: script.Stat{Sec: begun}}
	before, after := script.New(seed, 0, features, true), script.New(seed, 0, features, true)
	for _, s := range []*script.Script{before, after} {
		for range count {
			op := s.Next()
			if err := s.Apply(op, reports(t, seed, op)); err != nil {
				t.Fatal(err)
			}
		}
	}
	op := after.Next()
	if err := after.Apply(op, nil); err != nil {
		t.Fatal(err)
	}
	c.Threads = []Thread{{Before: before, After: after, Pending: &op}}
	return c
}

// reports returns what a guest reports after an operation, by doing the script again up
// to there.
func reports(t testing.TB, seed uint64, op script.Op) []script.Stat {
	t.Helper()
	s := replay(seed, op.Number+1)
	var all []script.Stat
	for _, ref := range op.Touch {
		n, err := s.At(ref)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, script.Stat{
			Ino: uint64(n.ID) + 12, Sec: begun, Nsec: uint32(op.Number), Mode: n.Mode, Size: n.Size, Nlink: n.Nlink(),
			UID: n.UID, GID: n.GID, Cap: n.Xattrs[script.Capability] != "", NoDump: n.NoDump,
		})
	}
	return all
}

// replayed keeps the last script of replay: most calls need one more operation than the last.
var replayed struct {
	seed uint64
	s    *script.Script
	n    int
}

func replay(seed uint64, n int) *script.Script {
	r := &replayed
	if r.s == nil || r.seed != seed || r.n > n {
		r.seed, r.s, r.n = seed, script.New(seed, 0, script.Features{Extents: true, ZeroRange: true}, false), 0
	}
	for ; r.n < n; r.n++ {
		if err := r.s.Apply(r.s.Next(), nil); err != nil {
			panic(err)
		}
	}
	return r.s
}

// render returns what a walk finds of a tree that equals its model.
func render(s *script.Script) Tree {
	tree := Tree{Entries: map[string]page.Entry{"": {Ino: 2, Mode: 0o40755, Nlink: 4, Sec: begun}, "lost+found": {Ino: 11, Mode: 0o40700}}}
	s.Top.Walk("t0", func(at string, n *script.Node) {
		e := page.Entry{
			Path: record.Path(at), Ino: uint64(n.ID) + 12, Mode: n.Mode, UID: n.UID, GID: n.GID, Nlink: n.Nlink(),
			Size: n.Size, Sec: n.Sec, Nsec: n.Nsec, Target: []byte(n.Target), NoDump: n.NoDump,
		}
		if n.Ino == 0 {
			e.Sec, e.Nsec = begun+1, 5
		}
		for _, name := range slices.Sorted(maps.Keys(n.Xattrs)) {
			e.Xattrs = append(e.Xattrs, []byte(name), []byte(n.Xattrs[name]))
		}
		if n.File() {
			sum := n.Content.Sum()
			e.Sum, e.Pages = sum[:], maps.Clone(n.Content.Pages)
			if e.Pages == nil {
				e.Pages = make(map[int64][]byte)
			}
		}
		tree.Entries[at] = e
	})
	return tree
}

// TestCompareExact checks that a tree equals its model, before the pending operation and
// after it.
func TestCompareExact(t *testing.T) {
	kinds := make(map[script.Kind]bool)
	compared := 0
	for seed := range uint64(5) {
		for count := 400; count < 430; count++ {
			c := pretend(t, seed, count)
			before := c.Compare(render(c.Threads[0].Before))
			if len(before.Findings) > 0 {
				t.Fatalf("seed %d, without %v: %v", seed, c.Threads[0].Pending, before.Findings)
			}
			after := c.Compare(render(c.Threads[0].After))
			if len(after.Findings) > 0 {
				t.Fatalf("seed %d, with %v: %v", seed, c.Threads[0].Pending, after.Findings)
			}
			durable := c.CompareDurable(render(c.Threads[0].Before))
			compared += durable.Durable
			if len(durable.Findings) > 0 || before.Nodes < 20 {
				t.Fatalf("seed %d: %d durable of %d: %v", seed, durable.Durable, before.Nodes, durable.Findings)
			}
			kinds[c.Threads[0].Pending.Kind] = true
		}
	}
	if len(kinds) < 15 || compared < 500 {
		t.Errorf("%d durable; pending were only %v", compared, kinds)
	}
}

// TestCompareTwoOperations checks that two operations without a report are one too many.
func TestCompareTwoOperations(t *testing.T) {
	missed := 0
	for count := 400; count < 440; count++ {
		c, further := pretend(t, 1, count), pretend(t, 1, count+1)
		both := render(further.Threads[0].After)
		if reflect.DeepEqual(both, render(further.Threads[0].Before)) {
			continue // as after an fsync, or a write to a deleted file
		}
		if got := c.Compare(both); len(got.Findings) == 0 {
			t.Logf("not seen: %v after %v", further.Threads[0].Pending, c.Threads[0].Pending)
			missed++
		}
	}
	// The second may undo or repeat the first.
	if missed > 2 {
		t.Errorf("%d second operations were not seen", missed)
	}
}

// spoilers change one thing in an entry; each reports whether the entry had it.
var spoilers = map[string]func(*page.Entry, *rand.Rand) bool{
	"mode":   func(e *page.Entry, r *rand.Rand) bool { e.Mode ^= 1 << r.IntN(9); return true },
	"type":   func(e *page.Entry, r *rand.Rand) bool { e.Mode ^= 0o120000; return true },
	"uid":    func(e *page.Entry, r *rand.Rand) bool { e.UID ^= 1 << r.IntN(32); return true },
	"gid":    func(e *page.Entry, r *rand.Rand) bool { e.GID ^= 1 << r.IntN(32); return true },
	"links":  func(e *page.Entry, r *rand.Rand) bool { e.Nlink++; return true },
	"second": func(e *page.Entry, r *rand.Rand) bool { e.Sec -= int64(1 + r.IntN(100)); return true },
	"nano":   func(e *page.Entry, r *rand.Rand) bool { e.Nsec ^= 1; return true },
	"inode":  func(e *page.Entry, r *rand.Rand) bool { e.Ino++; return true },
	"size":   func(e *page.Entry, r *rand.Rand) bool { e.Size--; return e.Mode&script.TypeMask != script.TypeDir },
	"flag":   func(e *page.Entry, r *rand.Rand) bool { e.NoDump = !e.NoDump; return true },
	"unread": func(e *page.Entry, r *rand.Rand) bool { e.Error = "input/output error"; return true },
	"target": func(e *page.Entry, r *rand.Rand) bool {
		e.Target = append([]byte("x"), e.Target...)
		return e.Mode&script.TypeMask == script.TypeLink
	},
	"content": func(e *page.Entry, r *rand.Rand) bool {
		e.Sum = bytes.Clone(e.Sum)
		if e.Mode&script.TypeMask != script.TypeFile {
			return false
		}
		e.Sum[0] ^= 1
		return true
	},
	"attribute": func(e *page.Entry, r *rand.Rand) bool {
		e.Xattrs = slices.Clone(e.Xattrs)
		if len(e.Xattrs) == 0 {
			return false
		}
		i := r.IntN(len(e.Xattrs)/2) * 2
		if r.IntN(2) == 0 {
			e.Xattrs = slices.Delete(e.Xattrs, i, i+2)
		} else {
			e.Xattrs[i+1] = append([]byte("x"), e.Xattrs[i+1]...)
		}
		return true
	},
	"more attributes": func(e *page.Entry, r *rand.Rand) bool {
		e.Xattrs = append(slices.Clone(e.Xattrs), []byte("user.more"), []byte("x"))
		return true
	},
}

// TestCompareDetects checks that each single difference is found, wherever it is: in the
// whole tree, and in what was durable.
func TestCompareDetects(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for seed := range uint64(2) {
		c := pretend(t, seed, 500)
		c.Threads[0].Pending, c.Threads[0].After = nil, nil
		durable := make(map[uint64]bool)
		c.Threads[0].Before.Top.Walk("", func(_ string, n *script.Node) { durable[n.Ino] = n.Durable() && len(n.Names) > 0 })
		good := render(c.Threads[0].Before)
		for at, e := range good.Entries {
			if at == "" || at == "lost+found" {
				continue
			}
			for what, spoil := range spoilers {
				bad := Tree{Entries: maps.Clone(good.Entries)}
				spoiled := e
				if !spoil(&spoiled, r) {
					continue
				}
				bad.Entries[at] = spoiled
				wantFound(t, c, bad, durable[e.Ino], fmt.Sprintf("%s of %q", what, at))
			}
			lost := Tree{Entries: maps.Clone(good.Entries)}
			delete(lost.Entries, at)
			wantFound(t, c, lost, durable[e.Ino], fmt.Sprintf("loss of %q", at))
		}
		for _, at := range []string{"t0/more", "t1", "lost+found/#12", "more"} {
			more := Tree{Entries: maps.Clone(good.Entries)}
			more.Entries[at] = page.Entry{Ino: 999, Mode: 0o100644, Nlink: 1}
			wantFound(t, c, more, false, "a new "+at)
		}
		wantFound(t, c, Tree{Error: "mount: structure needs cleaning"}, true, "no mount")
	}
}

func wantFound(t *testing.T, c *Crashed, bad Tree, durable bool, what string) {
	t.Helper()
	if got := c.Compare(bad); len(got.Findings) == 0 || durable && got.Lost() == 0 {
		t.Errorf("%s is not found: %v", what, got.Findings)
	}
	if got := c.CompareDurable(bad); durable && got.Lost() == 0 {
		t.Errorf("%s is not found among what was durable", what)
	}
}

// TestCompareInPart checks that a pending write is accepted in part, from its beginning,
// and in no other way.
func TestCompareInPart(t *testing.T) {
	writes := 0
	r := rand.New(rand.NewPCG(2, 2))
	for count := 300; count < 600; count++ {
		if op := replay(3, count).Next(); op.Kind != script.Write || op.On.Slot != script.NoSlot || op.Len < 3 {
			continue
		}
		c := pretend(t, 3, count)
		op := *c.Threads[0].Pending
		at := "t0/" + op.On.Path
		tree := render(c.Threads[0].Before)
		n, err := c.Threads[0].Before.At(op.On)
		if err != nil {
			t.Fatal(err)
		}
		part := 1 + r.Int64N(op.Len-1)
		written := func(from, to int64) page.Entry {
			b := make([]byte, op.Len)
			c.Threads[0].Before.Fill(b, op, 0)
			content := n.Content.Clone()
			content.Put(op.Off+from, b[from:to])
			e := tree.Entries[at]
			sum := content.Sum()
			e.Size, e.Sum, e.Pages, e.Sec, e.Nsec = content.Size, sum[:], content.Pages, begun+2, 7
			return e
		}
		tree.Entries[at] = written(0, part)
		if got := c.Compare(tree); len(got.Findings) > 0 || got.Partial != 1 {
			t.Errorf("%v, %d bytes of it: %v", op, part, got.Findings)
		}
		tree.Entries[at] = written(part, op.Len)
		if got := c.Compare(tree); len(got.Findings) == 0 {
			t.Errorf("%v, without its first %d bytes: not found", op, part)
		}
		writes++
	}
	if writes < 10 {
		t.Errorf("only %d writes", writes)
	}
}

func TestFirstReason(t *testing.T) {
	for check, want := range map[string]string{
		"it has no journal": "it has no journal",
		"1 operations were in flight [init (104): unknown]":                                                              "nothing to audit: all was on the disk",
		"4 operations were in flight: inode 508 has no links; block 7 changes [init (79): dir]":                          "inode N has no links",
		"4 operations were in flight: inode 508 has no links; not completed: mend: 2 names are missing [init (79): dir]": "inode N has no links (N names are missing)",
		"4 operations were in flight: inode 508 has no links; block 7; not completed: a [init (79): dir]":                "inode N has no links (a)",
		"1 operations were in flight: parse inode 137: wrong checksum: 0x27 instead of 0x4 [x (1)]":                      "parse inode N: wrong checksum: N instead of N",
		"2 operations were in flight: inode 2 has +3 names [init (1): truncate]":                                         "inode N has +N names",
	} {
		if got := firstReason(check); got != want {
			t.Errorf("%s: %q, want %q", check, got, want)
		}
	}
}

func TestRoad(t *testing.T) {
	for report, want := range map[string]string{
		`{"commit": {"case": "running", "open": 1, "proven": true, "placed": 3}}`:                                 roadPlaced,
		`{"commit": {"case": "running", "placed": 3, "unplaced": "inode 12"}}`:                                    roadQuiet,
		`{"commit": {"case": "running"}}`:                                                                         roadQuiet,
		`{"commit": {"case": "running", "open": 2, "proven": true}}`:                                              roadProven,
		`{"commit": {"case": "running", "open": 2, "check": "2 operations were in flight [x (1)]"}}`:              roadChecked,
		`{"commit": {"case": "nothing to commit", "check": "it has no journal"}}`:                                 roadPlain,
		`{"commit": {"case": "running", "open": 2}, "refused": [{"reason": "the last commit: it does not fit"}]}`: roadNone,
		`""`: "",
	} {
		if got := (&RescueReport{Report: []byte(report)}).road(); got != want {
			t.Errorf("%s: %q, want %q", report, got, want)
		}
	}
	if got := (*RescueReport)(nil).road(); got != "" {
		t.Errorf("without a report: %q", got)
	}
}
