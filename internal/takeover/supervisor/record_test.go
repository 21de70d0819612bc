package supervisor

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/fence"
	"understudy.dev/understudy/internal/live/pair"
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

// TestAtStake checks which run directories that a killed supervisor has left are at stake, and that a new pair removes
// the others.
func TestAtStake(t *testing.T) {
	disks := []RecordDisk{{Name: "data"}}
	for name, tc := range map[string]struct {
		record    Record
		root, bad bool // the pair has a root disk; its description cannot be read
		want      bool
	}{
		"nothing":               {Record{Active: "left"}, false, false, false},
		"a shared disk":         {Record{Active: "left", Disks: disks}, false, false, true},
		"saved":                 {Record{Active: "left", Disks: disks, Saved: true}, true, false, false},
		"booting":               {Record{Disks: disks}, false, false, false},
		"booting, root disk":    {Record{Disks: disks}, true, false, true},
		"a root disk":           {Record{Active: "left"}, true, false, true},
		"up to date":            {Record{Active: "left", Roots: []string{"left"}}, true, false, false},
		"unknown pair":          {Record{Active: "left"}, true, true, true},
		"unknown pair, booting": {Record{}, true, true, true},
	} {
		s := graveyard(t)
		if !tc.root {
			s.Pair.Partitions[0].Root = ""
		}
		if err := errors.Join(s.keepPair(), s.dir.Write(&tc.record)); err != nil {
			t.Fatal(err)
		}
		if tc.bad {
			if err := os.WriteFile(filepath.Join(s.dir.Path, pairName), []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		d, err := makeRunDir(s.dir.Path)
		if err == nil {
			err = d.Close()
		}
		var unsaved *Unsaved
		if errors.As(err, &unsaved) != tc.want || err != nil && !tc.want {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(s.dir.RAM("left")); (err == nil) != tc.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRecordUUID checks that records have the UUIDs of the file systems that this machine can see.
func TestRecordUUID(t *testing.T) {
	if _, err := exec.LookPath("mke2fs"); err != nil {
		tier.Lacks(t, err)
	}
	path := filepath.Join(t.TempDir(), "disk.img")
	other := path + ".other"
	const uuid = "b7680606-587d-4626-a630-236869cec2c7"
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 4<<20), os.WriteFile(other, make([]byte, 4096), 0o600)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", "-qF", "-U", uuid, path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	p := &pair.Pair{Name: "p", Disks: []pair.Disk{{Name: "plain", Image: path}, {Name: "layered", Image: other, LVM: "group/name"}}}
	s := newSupervisor(p, Options{}, &RunDir{Path: t.TempDir()})
	if err := s.hold(fence.Keep); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.release() }()
	for range 2 {
		if err := s.record(func(*Record) {}); err != nil {
			t.Fatal(err)
		}
		if d := s.dir.Record.Disks; d[0].UUID != uuid || d[1].UUID != "" {
			t.Errorf("%+v", d)
		}
	}
}
