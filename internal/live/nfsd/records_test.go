package nfsd

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func names(r *records) []string {
	var out []string
	for _, c := range r.known {
		out = append(out, string(c.Name))
	}
	slices.Sort(out)
	return out
}

func mustOpen(t *testing.T, state string) *records {
	t.Helper()
	r, skipped, err := openRecords(state)
	if err != nil || len(skipped) > 0 {
		t.Fatal(err, skipped)
	}
	return r
}

func try(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestRecordsOverStarts follows clients over starts of the server, each of which
// knows only what the disk says.
func TestRecordsOverStarts(t *testing.T) {
	state := t.TempDir()
	a, b, c := client{Name: []byte("a")}, client{Name: []byte("b"), Principal: bytes.Repeat([]byte{7}, principalSize)}, client{Name: []byte("c")}

	first := mustOpen(t, state)
	if len(first.known) != 0 {
		t.Errorf("a new directory has %v", names(first))
	}
	try(t, first.endGrace(), first.create(a), first.create(b), first.create(c), first.remove(c))

	// A start that dies in its grace period takes no client's right to reclaim away.
	second := mustOpen(t, state)
	if got := names(second); !slices.Equal(got, []string{"a", "b"}) {
		t.Fatalf("known after a crash: %v", got)
	}
	if got := second.known[recordName(b)].Principal; !bytes.Equal(got, b.Principal) {
		t.Errorf("principal %x", got)
	}
	try(t, second.create(a))

	third := mustOpen(t, state)
	if got := names(third); !slices.Equal(got, []string{"a", "b"}) {
		t.Fatalf("known after a crash in the grace: %v", got)
	}
	// A client that lets the grace period pass may not reclaim after the next start: another
	// client may have been given what it had.
	try(t, third.create(b), third.create(c), third.endGrace())
	if got := names(mustOpen(t, state)); !slices.Equal(got, []string{"b", "c"}) {
		t.Errorf("known after the grace: %v", got)
	}
	// Nor may a client that came in the grace period and went.
	try(t, third.remove(b), third.remove(b))
	if got := names(mustOpen(t, state)); !slices.Equal(got, []string{"c"}) {
		t.Errorf("known in the end: %v", got)
	}
}

// TestRecordsNewPrincipal: the record of a client that comes back with another
// principal gets that principal.
func TestRecordsNewPrincipal(t *testing.T) {
	state := t.TempDir()
	r := mustOpen(t, state)
	try(t, r.create(client{Name: []byte("a")}), r.create(client{Name: []byte("a"), Principal: []byte{1}}))
	if got := mustOpen(t, state).known[recordName(client{Name: []byte("a")})].Principal; !bytes.Equal(got, []byte{1}) {
		t.Errorf("principal %x", got)
	}
}

// TestRecordsSkipsWhatIsNone: files in the directory that are not records, left by a crash
// or by anybody, are reported, and cost no client its record.
func TestRecordsSkipsWhatIsNone(t *testing.T) {
	state := t.TempDir()
	good := client{Name: []byte("good")}
	try(t, mustOpen(t, state).create(good))
	dir := filepath.Join(state, clientsDir)
	other, err := json.Marshal(client{Name: []byte("other")})
	try(t, err,
		os.WriteFile(filepath.Join(dir, "."+recordName(good)), []byte("half"), 0o600), // was being written
		os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600),
		os.WriteFile(filepath.Join(dir, "renamed"), other, 0o600),
		os.WriteFile(filepath.Join(dir, "huge"), bytes.Repeat([]byte(" "), maxRecord+1), 0o600),
		os.Mkdir(filepath.Join(dir, "directory"), 0o700))
	r, skipped, err := openRecords(state)
	if err != nil || len(skipped) != 4 {
		t.Errorf("skipped %v, %v", skipped, err)
	}
	if got := names(r); !slices.Equal(got, []string{"good"}) {
		t.Errorf("known: %v", got)
	}
}

// FuzzRecord: a record that is accepted is one that the kernel would accept, and
// is the same after it was encoded and decoded again.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"name":"YQ=="}`))
	f.Add([]byte(`{"name":"YQ==","principal":"AQI="}`))
	f.Add([]byte(`{"name":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeRecord(b)
		if err != nil {
			return
		}
		if len(c.Name) == 0 || len(c.Name) > maxClientName || len(c.Principal) > principalSize {
			t.Fatalf("took %+v", c)
		}
		out, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if again, err := decodeRecord(out); err != nil || !bytes.Equal(again.Name, c.Name) || !bytes.Equal(again.Principal, c.Principal) {
			t.Fatalf("%+v came back as %+v, %v", c, again, err)
		}
	})
}

// TestReplace: clients recorded earlier are forgotten, and those that may reclaim instead are known at the next start.
func TestReplace(t *testing.T) {
	state := t.TempDir()
	for _, names := range [][][]byte{{[]byte("one"), []byte("two")}, {[]byte("two"), []byte("a name/with a slash\x00")}, nil} {
		if err := Replace(state, names); err != nil {
			t.Fatal(err)
		}
		r := mustOpen(t, state)
		if len(r.known) != len(names) {
			t.Errorf("%d are known of %d", len(r.known), len(names))
		}
		for _, name := range names {
			if _, ok := r.known[recordName(client{Name: name})]; !ok {
				t.Errorf("%q is not known", name)
			}
		}
	}
	if err := Replace(filepath.Join(state, "none", "\x00"), nil); err == nil {
		t.Error("records are replaced where there can be none")
	}
}

// TestRecordsRetry: changes that cannot be made durable are made later, unless they were taken back.
func TestRecordsRetry(t *testing.T) {
	state := t.TempDir()
	there, late, gone, away := client{Name: []byte("there")}, client{Name: []byte("late")}, client{Name: []byte("gone")}, client{Name: []byte("away")}
	r := mustOpen(t, state)
	try(t, r.create(there), r.create(away))
	r = mustOpen(t, state)
	try(t, r.create(there))
	dir, hidden := filepath.Join(state, clientsDir), filepath.Join(state, "hidden")
	try(t, os.Rename(dir, hidden), os.WriteFile(dir, nil, 0o600))
	for name, err := range map[string]error{"create": r.create(late), "create again": r.create(gone), "remove": r.remove(gone), "end grace": r.endGrace(), "retry": r.retry()} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	try(t, os.Remove(dir), os.Rename(hidden, dir), r.retry())
	if len(r.unsaved) > 0 {
		t.Errorf("unsaved: %v", r.unsaved)
	}
	if got := names(mustOpen(t, state)); !slices.Equal(got, []string{"late", "there"}) {
		t.Errorf("known: %v", got)
	}
}

// TestTrackerRetries: a record that cannot be written is a trouble until it is written.
func TestTrackerRetries(t *testing.T) {
	state := t.TempDir()
	var told, ended []string
	tr := &tracker{records: mustOpen(t, state), log: func(string) {}, trouble: func(what, ends string) {
		if ends != "" {
			ended = append(ended, ends)
			return
		}
		told = append(told, what)
	}}
	dir := filepath.Join(state, clientsDir)
	try(t, os.Remove(dir), os.WriteFile(dir, nil, 0o600))
	for _, name := range []string{"a", "b"} {
		if status := tr.change(tr.records.create(client{Name: []byte(name)})); status == 0 {
			t.Error("no error")
		}
	}
	tr.tried = time.Time{}
	tr.retry()
	if len(told) != 1 || len(ended) != 0 {
		t.Errorf("told %q, ended %q", told, ended)
	}
	try(t, os.Remove(dir), os.Mkdir(dir, 0o700))
	tr.retry() // too early
	tr.tried = time.Time{}
	tr.retry()
	if !slices.Equal(told, ended) {
		t.Errorf("told %q, ended %q", told, ended)
	}
	if got := names(mustOpen(t, state)); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("known: %v", got)
	}
}

// TestReplaceFails: while new records cannot be written, the others stay.
func TestReplaceFails(t *testing.T) {
	state := t.TempDir()
	try(t, mustOpen(t, state).create(client{Name: []byte("old")}), os.Mkdir(filepath.Join(state, clientsDir, recordName(client{Name: []byte("new")})), 0o700))
	if err := Replace(state, [][]byte{[]byte("new")}); err == nil {
		t.Error("no error")
	}
	if _, err := os.Stat(filepath.Join(state, clientsDir, recordName(client{Name: []byte("old")}))); err != nil {
		t.Error(err)
	}
}
