package jbd2_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"understudy.dev/understudy/dead/jbd2"
)

// TestRecording compares a recording, at each of its instants, with a slice.
func TestRecording(t *testing.T) {
	base := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	random := rand.New(rand.NewPCG(1, 1))
	r := jbd2.NewRecording(bytes.NewReader(base))
	now := slices.Clone(base)
	states := [][]byte{base}
	for range 60 {
		if random.IntN(4) == 0 {
			if err := r.Sync(); err != nil {
				t.Fatal(err)
			}
		} else {
			at, n := random.IntN(100)*jbd2.SectorSize, (1+random.IntN(20))*jbd2.SectorSize
			data := bytes.Repeat([]byte{byte(random.Uint32())}, n)
			if _, err := r.WriteAt(data, int64(at)); err != nil {
				t.Fatal(err)
			}
			copy(now[at:], data)
		}
		states = append(states, slices.Clone(now))
	}
	for n, want := range states {
		got := make([]byte, len(base))
		if _, err := r.Prefix(n).ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("after %d it is something else, %v", n, err)
		}
		piece := make([]byte, 700) // not whole sectors
		if _, err := r.Prefix(n).ReadAt(piece, 333); err != nil || !bytes.Equal(piece, want[333:][:700]) {
			t.Fatalf("after %d a piece is something else, %v", n, err)
		}
	}
	changed := slices.Clone(base)
	end := int64(-1)
	for at, piece := range r.Changed() {
		if at <= end {
			t.Errorf("pieces touch at %d", at)
		}
		copy(changed[at:], piece)
		end = at + int64(len(piece))
	}
	if !bytes.Equal(changed, now) {
		t.Error("what changed is not all of it")
	}
}

// TestRecordingCrash checks that a crash keeps what was synced, and of the rest what is chosen.
func TestRecordingCrash(t *testing.T) {
	r := jbd2.NewRecording(bytes.NewReader(make([]byte, 4*jbd2.SectorSize)))
	for i := range byte(4) { // a sync after the second
		if _, err := r.WriteAt(bytes.Repeat([]byte{i + 1}, jbd2.SectorSize), int64(i)*jbd2.SectorSize); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			if err := r.Sync(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for n, want := range []string{"\x00\x00\x00\x00", "\x00\x00\x00\x00", "\x00\x00\x00\x00", "\x01\x02\x00\x00", "\x01\x02\x00\x00", "\x01\x02\x00\x04"} {
		got := make([]byte, 4*jbd2.SectorSize)
		if _, err := r.Crash(n, func(i int) bool { return i == 4 }).ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		if have := string([]byte{got[0], got[512], got[1024], got[1536]}); have != want {
			t.Errorf("after %d: %q instead of %q", n, have, want)
		}
	}
	if _, err := r.WriteAt(make([]byte, 100), 0); err == nil {
		t.Error("a piece of a sector was written")
	}
	if _, err := r.ReadAt(make([]byte, 600), 3*jbd2.SectorSize+100); err != io.EOF {
		t.Error("beyond the end:", err)
	}
}
