package supervisor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/live/pair"
)

// TestAbandon checks that a side that is forced down goes down even if it cannot write what could be
// made durable, and that its memory is kept.
func TestAbandon(t *testing.T) {
	for name, why := range map[string]error{
		"busy": errors.New("/srv is in use"),
		"dead": &Died{liveness.Verdict{Cause: liveness.Silence}},
	} {
		s := graveyard(t)
		s.active = &side{name: "left"}
		if err := s.active.mute(); err != nil {
			t.Fatal(err)
		}
		s.active.muted = false // its agent has gone since
		if err := s.Abandon(t.Context(), why); err != nil || s.recorded().Why != why.Error() {
			t.Errorf("%s: %v, %+v", name, err, s.recorded())
		}
	}
}

// TestRecordStop checks that a side that is taken over from while it stops is not recorded as stopped.
func TestRecordStop(t *testing.T) {
	s := graveyard(t)
	if err := s.record(func(r *Record) { r.Saved = false }); err != nil {
		t.Fatal(err)
	}
	saved := func(r *Record) { r.Saved = true }
	over := errors.New("a takeover is under way")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(over)
	if err := s.recordStop(ctx, saved); !errors.Is(err, over) || s.recorded().Saved {
		t.Errorf("%v, %+v", err, s.recorded())
	}
	if err := s.recordStop(t.Context(), saved); err != nil || !s.recorded().Saved {
		t.Errorf("%v, %+v", err, s.recorded())
	}
}

// TestStoppedRoots checks that a system with its own root disk is at stake once its pair has stopped, until it is
// powered off: neither another supervisor nor a down removes its memory if its supervisor is killed before that.
func TestStoppedRoots(t *testing.T) {
	s := graveyard(t)
	before := KeptMemory{File: filepath.Join(s.dir.Path, "kept-1-left.ram"), Why: "2 things"}
	if err := errors.Join(s.keepPair(), s.record(func(r *Record) { r.Saved, r.Active, r.Kept = false, "left", []KeptMemory{before} })); err != nil {
		t.Fatal(err)
	}
	for range 2 { // as after a switch that has failed
		if err := s.recordStop(t.Context(), s.saved); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(s.recorded().Kept); n != 2 || len(s.Kept()) != 1 {
		t.Errorf("%d are recorded, %d are reported", n, len(s.Kept()))
	}
	var unsaved *Unsaved
	if _, err := makeRunDir(s.dir.Path); !errors.As(err, &unsaved) || !strings.Contains(err.Error(), "understudy recover") {
		t.Errorf("%v", err)
	}
	d, err := OpenRunDir(s.dir.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	lacking, err := d.LackingRoots()
	if b, read := os.ReadFile(d.RAM("left")); string(b) != "memory" || err != nil || len(lacking) != 1 {
		t.Errorf("%q, %v; %+v, %v", b, read, lacking, err)
	}
	s.dir.RootHas(d.Record, s.Pair.Partitions[0]) // as powerOff does
	if kept := d.Record.Kept; len(kept) != 1 || kept[0] != before {
		t.Errorf("once it is off: %+v", kept)
	}
}

// TestUndo checks that a start that fails does not lose what a system that has come up has in memory only.
func TestUndo(t *testing.T) {
	t.Parallel() // it waits for an agent
	s := graveyard(t)
	if err := errors.Join(s.dir.take(), s.keepPair(), s.dir.Write(&Record{Pair: "p", Disks: []RecordDisk{{Name: "data"}}})); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("no room")
	s.options.Rescue = func(context.Context, string, string) error { return broken }
	s.sides[0] = running(t, s)
	var unsaved *Unsaved
	if err := s.undo(); !errors.Is(err, broken) || !errors.As(err, &unsaved) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(s.dir.RAM("left")); err != nil {
		t.Error(err)
	}
}

// TestStopAlone checks that Stop does not wait for a side that dies while it stops and nobody watches.
func TestStopAlone(t *testing.T) {
	s := graveyard(t)
	s.Pair.Heartbeat = pair.Heartbeat{Period: time.Millisecond, Limit: time.Second}
	s.active = running(t, s) // as Freeze leaves it
	var died *Died
	if err := s.StopAlone(t.Context()); !errors.As(err, &died) || !strings.Contains(err.Error(), "left") {
		t.Errorf("%v", err)
	}
	if err := s.active.end(); err != nil {
		t.Error(err)
	}
}
