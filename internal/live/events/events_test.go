package events

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// open opens a log whose writes must not fail.
func open(t *testing.T, dir string) *Log {
	t.Helper()
	l, err := Open(dir, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// details reads a log: the details of its events, and how many lines are bad.
func details(t *testing.T, dir string) (read []string, bad int) {
	t.Helper()
	for e, err := range Read(dir) {
		var b *BadLine
		switch {
		case errors.As(err, &b):
			bad++
		case err != nil:
			t.Fatal(err)
		default:
			read = append(read, e.Detail)
		}
	}
	return read, bad
}

func TestLog(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pair")
	at := time.Date(2026, 11, 28, 1, 2, 3, 4000, time.UTC)
	sent := []Event{
		{At: at, Kind: Protected, Pair: "web", State: "protected", Active: "left", Understudy: "right"},
		{At: at, Kind: TookOver, Pair: "web", State: "unprotected", Active: "right", Cause: "heartbeat", Detail: "12 files\nand more", Takeover: json.RawMessage(`{"files":12}`)},
	}
	for _, e := range sent { // by two supervisors, one after the other
		l := open(t, dir)
		l.Add(e)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l.Add(e) // the log is closed: nothing is written
	}
	n := 0
	for e, err := range Read(dir) {
		if err != nil {
			t.Fatal(err)
		}
		if got, want := fmt.Sprintf("%+v", e), fmt.Sprintf("%+v", sent[n]); got != want {
			t.Errorf("read %s\nwant %s", got, want)
		}
		n++
	}
	if n != len(sent) {
		t.Errorf("read %d events of %d", n, len(sent))
	}
	for _, err := range Read(t.TempDir()) {
		t.Errorf("an empty log has something: %v", err)
	}
}

// TestTornLine: a line that was cut off when the machine ended is reported, and no other event is lost.
func TestTornLine(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	l.Add(Event{Kind: Up, Detail: "first"})
	l.Close()
	path := filepath.Join(dir, fileName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(whole, whole[:len(whole)/2]...), 0o600); err != nil {
		t.Fatal(err)
	}
	if read, bad := details(t, dir); !slices.Equal(read, []string{"first"}) || bad != 1 {
		t.Errorf("read %v, and %d bad lines", read, bad)
	}
	l = open(t, dir)
	l.Add(Event{Kind: Down, Detail: "second"})
	l.Close()
	if read, bad := details(t, dir); !slices.Equal(read, []string{"first", "second"}) || bad != 1 {
		t.Errorf("read %v, and %d bad lines", read, bad)
	}
}

// TestRotate: the log stays within its bound, and keeps the newest events.
func TestRotate(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	long := strings.Repeat("x", maxLine/2)
	const count = 5 * maxBytes / (maxLine / 2)
	for n := range count {
		if err := l.write(Event{Kind: Error, Detail: fmt.Sprintf("%d %s", n, long)}); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	var size int64
	for _, name := range []string{fileName, oldName} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		size += st.Size()
	}
	read, bad := details(t, dir)
	if size > 2*maxBytes || len(read) < maxBytes/maxLine || bad != 0 {
		t.Fatalf("%d bytes, %d events, %d bad lines", size, len(read), bad)
	}
	for i, d := range read {
		if want := fmt.Sprintf("%d ", count-len(read)+i); !strings.HasPrefix(d, want) {
			t.Errorf("event %d is %.10s, not %s", i, d, want)
		}
	}
}

// TestLongReport: an event whose report is too long is recorded without the report.
func TestLongReport(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	l.Add(Event{Kind: TookOver, Detail: "kept", Takeover: json.RawMessage(`"` + strings.Repeat("x", maxLine) + `"`)})
	l.Close()
	if read, bad := details(t, dir); !slices.Equal(read, []string{"kept"}) || bad != 0 {
		t.Errorf("read %v, and %d bad lines", read, bad)
	}
}

// TestQueue: adding events does not wait for one that is stuck, and events that were dropped are
// counted.
func TestQueue(t *testing.T) {
	stuck, begun := make(chan struct{}), make(chan struct{}, 1)
	var handled []Event
	q := newQueue(func(e Event) {
		if handled = append(handled, e); len(handled) == 1 {
			begun <- struct{}{}
			<-stuck
		}
	})
	q.add(Event{Kind: Up})
	<-begun
	for range maxWaiting + 7 {
		q.add(Event{Kind: Error})
	}
	if q.close(time.Millisecond) {
		t.Error("it is done, though stuck")
	}
	close(stuck)
	if !q.close(time.Minute) || len(handled) != maxWaiting+1 {
		t.Errorf("%d handled", len(handled))
	}
	q = newQueue(func(e Event) { handled = append(handled, e) })
	q.dropped, handled = 7, nil
	q.add(Event{Kind: Up})
	q.add(Event{Kind: Down})
	q.close(time.Minute)
	if len(handled) != 2 || handled[0].Dropped != 7 || handled[1].Dropped != 0 {
		t.Errorf("handled %+v", handled)
	}
}

// TestFollow: events that are added while a log is read, and after the file was replaced, are read once.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r := NewReader(dir)
	defer r.Close()
	var read []string
	collect := func(until string, all iter.Seq2[Event, error]) {
		for e, err := range all {
			if err != nil {
				t.Fatal(err)
			}
			if read = append(read, e.Detail); e.Detail == until {
				return
			}
		}
	}
	collect("", r.Read()) // nothing is there yet
	l := open(t, dir)
	add := func(detail string) {
		if err := l.write(Event{Kind: Error, Detail: detail}); err != nil {
			t.Fatal(err)
		}
	}
	add("one")
	collect("one", r.Follow(ctx, time.Millisecond))
	add("two")
	collect("two", r.Follow(ctx, time.Millisecond))
	add("three")
	if err := l.rotate(); err != nil {
		t.Fatal(err)
	}
	add("four")
	collect("four", r.Follow(ctx, time.Millisecond))
	l.Close()
	if !slices.Equal(read, []string{"one", "two", "three", "four"}) {
		t.Errorf("followed %v", read)
	}
	again := NewReader(dir)
	defer again.Close()
	read = nil
	collect("", again.Read())
	if !slices.Equal(read, []string{"one", "two", "three", "four"}) {
		t.Errorf("read %v", read)
	}
}

func TestHooks(t *testing.T) {
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	script := func(text string) []string { return []string{"/bin/sh", "-c", text, "hook", out} }
	hooks := []Hook{
		{Command: script(`{ cat; echo "$UNDERSTUDY_PAIR $UNDERSTUDY_EVENT $UNDERSTUDY_CAUSE"; } >> "$1"`), On: []Kind{TookOver}},
		{Command: script(`echo no pager here >&2; exit 3`), On: []Kind{Down}},
		{Command: []string{"/no/such/program"}, On: []Kind{Down}},
		{Command: script(`sleep 1000 & sleep 1000`), On: []Kind{Held}},
	}
	failed := make(chan string, 8)
	r := newRunner(hooks, 2*time.Second, func(err error) { failed <- err.Error() })
	for _, k := range []Kind{Up, TookOver, Down, Held} {
		r.Add(Event{Pair: "web", Kind: k, Cause: "heartbeat", Detail: "a\x00b"})
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	close(failed)
	var said []string
	for f := range failed {
		said = append(said, f)
	}
	slices.Sort(said)
	want := []string{"hook /bin/sh at down: exit status 3: no pager here", "hook /bin/sh at held: it was ended after 2s",
		"hook /no/such/program at down: fork/exec /no/such/program: no such file or directory"}
	if !slices.Equal(said, want) || r.Failures() != 3 {
		t.Errorf("%d failed:\n%s", r.Failures(), strings.Join(said, "\n"))
	}
	got, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	first, rest, _ := bytes.Cut(got, []byte("\n"))
	var e Event
	if err := json.Unmarshal(first, &e); err != nil || e.Kind != TookOver || string(rest) != "web took-over heartbeat\n" {
		t.Errorf("the hook was given %q, %v", got, err)
	}
}

// FuzzRead: whatever a log holds, each line is an event or a *BadLine, none is dropped, and
// an event that is written again is the same.
func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"time":"2026-11-28T01:02:03Z","event":"up","pair":"web","state":"protected"}` + "\n{\n\n[]"))
	f.Add([]byte(`{"event":"up","takeover":{"files":1}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &scanner{name: "f", r: bufio.NewReader(bytes.NewReader(b))}
		lines := 0
		yield := func(e Event, err error) bool {
			lines++
			if err != nil {
				if bad, ok := errors.AsType[*BadLine](err); !ok {
					t.Fatalf("%T: %v", bad, err)
				}
				return true
			}
			if _, err := json.Marshal(e); err != nil {
				t.Fatalf("%+v: %v", e, err)
			}
			return true
		}
		if s.scan(yield) {
			s.rest(yield)
		}
		want := 0
		for line := range bytes.SplitSeq(b, []byte("\n")) {
			if len(bytes.TrimSpace(line)) > 0 {
				want++
			}
		}
		if lines != want {
			t.Fatalf("%d of %d lines", lines, want)
		}
	})
}

// TestHooksLeft: Leave waits for a short time, for all hooks together, and ends none.
func TestHooksLeft(t *testing.T) {
	t.Parallel() // Leave takes closeLimit
	dir := t.TempDir()
	var hooks []Hook
	for _, name := range []string{"a", "b"} {
		hooks = append(hooks, Hook{Command: []string{"/bin/sh", "-c", `echo $$ > "$1.new"; mv "$1.new" "$1"; exec sleep 1000`, "hook", filepath.Join(dir, name)}})
	}
	r := NewRunner(hooks, func(error) {})
	r.Add(Event{Pair: "web", Kind: Left})
	began := time.Now()
	if err := r.Leave(); err == nil {
		t.Error("they have ended")
	}
	if took := time.Since(began); took > 2*closeLimit-time.Second {
		t.Errorf("it took %v", took)
	}
	for _, name := range []string{"a", "b"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err == nil {
			err = syscall.Kill(-pid, syscall.SIGKILL)
		}
		if err != nil {
			t.Errorf("hook %s does not go on: %v", name, err)
		}
	}
}
