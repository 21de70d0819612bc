package supervisor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/tier"
)

// TestRecordWithoutRoom checks that the record can be written when the run directory is
// full: room is kept for it.
func TestRecordWithoutRoom(t *testing.T) {
	tier.Guest(t) // it mounts
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		tier.Lacks(t, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	d := &RunDir{Path: dir}
	if err := d.Write(&Record{Pair: "p"}); err != nil {
		t.Fatal(err)
	}
	fill := filepath.Join(dir, "fill")
	for n := 1 << 20; n > 0; n /= 2 {
		f, err := os.OpenFile(fill, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = f.Write(make([]byte, n))
		}
		f.Close()
	}
	if err := os.WriteFile(filepath.Join(dir, "other"), []byte{1}, 0o600); err == nil {
		t.Fatal("there is room")
	}
	for _, why := range []string{"first", "second"} {
		if err := d.Write(&Record{Pair: "p", Why: why}); err != nil {
			t.Fatal(err)
		}
		if err := d.take(); err != nil {
			t.Fatal(err)
		}
		d.Close()
		again, err := OpenRunDir(dir)
		if err != nil || again.Record.Why != why {
			t.Fatalf("%+v, %v", again, err)
		}
		again.Close()
	}
}

// TestRecordVersion checks that a record with a dead side has a version that older programs refuse,
// and that an unknown version is refused.
func TestRecordVersion(t *testing.T) {
	d := &RunDir{Path: t.TempDir()}
	open := func() (version int, err error) {
		t.Helper()
		again, err := OpenRunDir(d.Path)
		if err != nil {
			return 0, err
		}
		return again.Record.Version, again.Close()
	}
	for want, r := range map[int]*Record{1: {Pair: "p"}, 2: {Pair: "p", Dead: &DeadSide{Name: "left", Why: "2 things"}}} {
		if err := d.Write(r); err != nil {
			t.Fatal(err)
		}
		if got, err := open(); err != nil || got != want {
			t.Errorf("version %d, want %d: %v", got, want, err)
		}
	}
	if err := os.WriteFile(filepath.Join(d.Path, recordName), []byte(`{"version": 3}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(); err == nil || !strings.Contains(err.Error(), "version 3") {
		t.Errorf("%v", err)
	}
}
