package page_test

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/oracle/page"
	"understudy.dev/understudy/internal/lab/oracle/script"
)

func fresh(t testing.TB) page.Page {
	p, err := page.Of(make([]byte, page.Size))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestRoundTrip checks that the host reads what the guest wrote, and the other way round.
func TestRoundTrip(t *testing.T) {
	p := fresh(t)
	want := page.Order{Work: &page.Work{Seed: 7, Threads: 3, Mount: page.Mount{Disk: "d", Options: "a=b"}}}
	var got page.Order
	if err := p.Order(&got); err == nil {
		t.Error("an order before it was given")
	}
	if err := p.Give(want); err != nil {
		t.Fatal(err)
	}
	if err := p.Order(&got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	stats := []script.Stat{
		{Ino: 1 << 40, Sec: -5, Nsec: 999999999, Mode: 0o104755, Size: 1 << 50, Nlink: 3, UID: 1 << 31, GID: 70000, Cap: true},
		{Ino: 2, Nsec: 1},
	}
	for thread := range page.Threads {
		a := p.Area(thread)
		for _, n := range []int{0, page.MaxRecords - 1} {
			a.Begin(n)
			a.Report(n, stats[:1+n%2])
			got, err := a.Reported(n)
			if err != nil || !reflect.DeepEqual(got, stats[:1+n%2]) {
				t.Errorf("thread %d, operation %d: %v, %v", thread, n, got, err)
			}
		}
		if begun, done, err := a.Progress(); begun != page.MaxRecords || done != page.MaxRecords || err != nil {
			t.Errorf("thread %d: %d begun, %d done, %v", thread, begun, done, err)
		}
	}
	if err := p.Tell([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if b, err := p.Told(); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestFail(t *testing.T) {
	p := fresh(t)
	p.Fail(errors.New("first"))
	p.Fail(errors.New(strings.Repeat("second", 1000)))
	if p.Load(page.State) != page.Failed || p.Failure() != "first" {
		t.Errorf("state %d, %q", p.Load(page.State), p.Failure())
	}
}

// TestProgressRefuses checks that counters that no guest leaves behind are an error.
func TestProgressRefuses(t *testing.T) {
	for begun, ok := range map[int]bool{4: false, 5: true, 6: true, 7: false, 1 << 30: false} {
		p := fresh(t)
		p.Area(1).Report(4, nil)
		p.Area(1).Begin(begun - 1)
		if _, _, err := p.Area(1).Progress(); (err == nil) != ok {
			t.Errorf("%d begun, 5 done: %v", begun, err)
		}
	}
	if _, err := page.Of(make([]byte, 4096)); err == nil {
		t.Error("a page that is too small")
	}
}

// FuzzPage checks that shared memory, whatever is in it, does no harm to its reader.
func FuzzPage(f *testing.F) {
	f.Add(uint32(0), []byte{})
	f.Add(uint32(1<<20), []byte{1, 0, 0, 0})
	f.Add(uint32(65536), []byte("\xff\xff\xff\xff{}"))
	p := fresh(f)
	f.Fuzz(func(t *testing.T, at uint32, b []byte) {
		part := p[min(int(at), page.Size):]
		n := copy(part, b)
		defer clear(part[:n])
		var order page.Order
		_ = p.Order(&order)
		_, _ = p.Told()
		_ = p.Failure()
		for thread := range page.Threads {
			begun, done, err := p.Area(thread).Progress()
			if err == nil && (begun < done || done > page.MaxRecords) {
				t.Errorf("%d begun, %d done", begun, done)
			}
			if err == nil && done > 0 {
				if stats, err := p.Area(thread).Reported(done - 1); err == nil && len(stats) > script.MaxTouched {
					t.Errorf("%d files touched", len(stats))
				}
			}
		}
	})
}
