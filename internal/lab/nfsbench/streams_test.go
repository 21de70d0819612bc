package nfsbench

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// some returns a context that ends once a stream has done some operations.
func some(t *testing.T, m *Moments) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	go func() {
		defer cancel()
		for m.done() < 40 && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
	}()
	return ctx
}

// work runs a stream in a directory of this machine.
func work(t *testing.T, w *Work) Stream {
	t.Helper()
	m := newMoments(w.Name)
	w.Buffered = true // not every file system has direct I/O
	w.do(some(t, m), m)
	s := m.end()
	if s.Done < 40 || len(s.Failures) > 0 {
		t.Fatalf("%d operations, failures %+v", s.Done, s.Failures)
	}
	return s
}

func TestAppended(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	a := &Appended{Path: path, Seed: 1}
	work(t, &Work{Append: a})
	check := func() int64 {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		lost, err := a.check(func(at int64, n int) ([]byte, error) {
			return io.ReadAll(io.NewSectionReader(f, at, int64(n)))
		}, st.Size())
		if err != nil {
			t.Fatal(err)
		}
		return lost
	}
	if lost := check(); lost != 0 || a.Records < 2 || a.Wrong != 0 {
		t.Errorf("%d bytes lost of %d records, %d read wrong", lost, a.Records, a.Wrong)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	content[17] ^= 1
	if err := os.WriteFile(path, content[:len(content)-1], 0o644); err != nil {
		t.Fatal(err)
	}
	if lost := check(); lost != 2*RecordBytes {
		t.Errorf("%d bytes lost, with a bit of one record and the end of another gone", lost)
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if lost := check(); lost != int64(a.Records)*RecordBytes {
		t.Errorf("%d bytes lost of a file that is empty now", lost)
	}
}

func TestNames(t *testing.T) {
	n := &Names{Dir: t.TempDir(), Seed: 1}
	work(t, &Work{Names: n})
	read := func() map[string][]byte {
		got := make(map[string][]byte)
		entries, err := os.ReadDir(n.Dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if got[e.Name()] = nil; !e.IsDir() {
				if got[e.Name()], err = os.ReadFile(filepath.Join(n.Dir, e.Name())); err != nil {
					t.Fatal(err)
				}
			}
		}
		return got
	}
	if lost, findings := n.check(read()); lost > 0 || len(findings) > 0 || len(n.Files) == 0 || len(n.Dirs) == 0 {
		t.Fatalf("%d bytes lost, %s", lost, findings)
	}
	var file, dir string
	for file = range n.Files {
	}
	for dir = range n.Dirs {
	}
	spoils := []struct {
		name string
		f    func(map[string][]byte)
		lost int64
		want string
	}{
		{"file gone", func(m map[string][]byte) { delete(m, file) }, nameBytes, "is gone"},
		{"content", func(m map[string][]byte) { m[file][3] ^= 1 }, nameBytes, "has not what"},
		{"directory gone", func(m map[string][]byte) { delete(m, dir) }, 0, "is gone"},
		{"file came back", func(m map[string][]byte) { m["n00000"] = []byte{} }, 0, "is there"},
	}
	for _, s := range spoils {
		got := read()
		s.f(got)
		lost, findings := n.check(got)
		if lost != s.lost || len(findings) != 1 || !strings.Contains(findings[0], s.want) {
			t.Errorf("%s: %d bytes lost, %q", s.name, lost, findings)
		}
	}
}

// TestNamesRepeated checks that an operation that was carried out twice counts as one,
// with its error noted, and that any other failure leaves the name unsure.
func TestNamesRepeated(t *testing.T) {
	n := &Names{Dir: t.TempDir(), Files: make(map[string]int), Dirs: make(map[string]int), Unsure: make(map[string]int)}
	m := newMoments("names")
	if err := os.Mkdir(filepath.Join(n.Dir, "d00000"), 0o755); err != nil {
		t.Fatal(err)
	}
	if !n.round(t.Context(), m, 0) {
		t.Error("a round with a directory that is there was given up")
	}
	if err := os.WriteFile(filepath.Join(n.Dir, "n00001"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if n.round(t.Context(), m, 1) {
		t.Error("a round with a file that is there was not given up")
	}
	s := m.end()
	if len(s.Failures) != 2 || s.Failures[0].Errno != int(unix.EEXIST) || len(n.Unsure) == 0 {
		t.Errorf("failures %+v, unsure %v", s.Failures, n.Unsure)
	}
	r := &Report{StallMS: make(map[string]float64)}
	r.judge(&s, s.Failures[1].From)
	if len(r.LostReplies) != 0 || len(r.Errors) != 2 {
		t.Errorf("errors %q, lost replies %q", r.Errors, r.LostReplies)
	}
	s = m.end()
	r = &Report{StallMS: make(map[string]float64)}
	r.judge(&s, s.Failures[0].From)
	if len(r.LostReplies) != 1 || len(r.Errors) != 1 {
		t.Errorf("errors %q, lost replies %q", r.Errors, r.LostReplies)
	}
}

func TestLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	a, b := &Lines{Path: path, Writer: "a"}, &Lines{Path: path, Writer: "b"}
	done := make(chan Stream)
	go func() {
		m := newMoments("a")
		a.work(some(t, m), m)
		done <- m.end()
	}()
	work(t, &Work{Lines: b})
	<-done
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	both := []*Lines{a, b}
	if lost, findings := checkLines(content, both); lost > 0 || len(findings) > 0 || len(content) != (a.Acked+b.Acked)*lineBytes {
		t.Fatalf("%d bytes lost of %d, %s", lost, len(content), findings)
	}
	twice := append(slices.Clone(content), content[:lineBytes]...)
	torn := slices.Clone(content)
	torn[5] = 'x'
	for name, c := range map[string][]byte{"one gone": content[lineBytes:], "one twice": twice, "one torn": torn, "half of one": content[:len(content)-7]} {
		if _, findings := checkLines(c, both); len(findings) == 0 {
			t.Errorf("%s: nothing found", name)
		}
	}
	a.Unsure = map[int]bool{0: true}
	without := bytes.Replace(content, line("a", 0), nil, 1)
	if lost, findings := checkLines(without, both); lost > 0 || len(findings) > 0 {
		t.Errorf("a line that was not acknowledged is missed: %s", findings)
	}
}

func TestRecordsDiffer(t *testing.T) {
	seen := make(map[string]bool)
	b := make([]byte, RecordBytes)
	for seed := range uint64(30) {
		for i := range 30 {
			record(b, seed, i)
			for at := 0; at < len(b); at += 512 {
				seen[string(b[at:at+512])] = true
			}
		}
	}
	if len(seen) != 30*30*8 {
		t.Errorf("%d sectors of %d differ", len(seen), 30*30*8)
	}
}

func TestStall(t *testing.T) {
	ms := int64(time.Millisecond)
	s := Stream{Gaps: []Gap{{0, 900 * ms}, {1000 * ms, 1100 * ms}, {1200 * ms, 1700 * ms}, {1800 * ms, 2000 * ms}}}
	s.shift(10 * ms)
	for after, want := range map[int64]time.Duration{0: 900 * time.Millisecond, 950 * ms: 500 * time.Millisecond, 1500 * ms: 500 * time.Millisecond, 1750 * ms: 200 * time.Millisecond, 5000 * ms: 0} {
		if got := s.Stall(after); got != want {
			t.Errorf("stall after %d ms: %v, want %v", after/ms, got, want)
		}
	}
}

func TestMomentsEndIsAGap(t *testing.T) {
	m := newMoments("m")
	time.Sleep(2 * shortGap)
	s := m.end()
	if len(s.Gaps) != 1 || s.Stall(s.Gaps[0].From) < shortGap {
		t.Errorf("gaps %v", s.Gaps)
	}
}
