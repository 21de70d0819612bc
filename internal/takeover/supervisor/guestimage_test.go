package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net"
	"testing"

	"understudy.dev/understudy/internal/live/wire"
)

// seer is a guest that can see a disk.
type seer struct {
	t       *testing.T
	disk    []byte
	staging []byte
	writes  int
	fails   bool
}

// answer is what the agent does (internal/live/agent: read, write).
func (s *seer) answer(_ context.Context, verb string, body json.RawMessage) (any, error) {
	switch verb {
	case wire.Read:
		var r wire.ReadRequest
		if err := json.Unmarshal(body, &r); err != nil {
			return nil, err
		}
		return wire.ReadResult{Data: s.disk[r.Off : r.Off+r.Len]}, nil
	case wire.Write:
		var r wire.WriteRequest
		if err := json.Unmarshal(body, &r); err != nil {
			return nil, err
		}
		if s.writes++; s.fails {
			return nil, errors.New("the disk is broken")
		}
		runs, err := wire.DecodeBlocks(s.staging[r.Blocks : r.Blocks+r.Len])
		if err != nil {
			return nil, err
		}
		for _, run := range runs {
			copy(s.disk[run.Off:run.Off+run.Len], s.staging[run.Staged:])
		}
		return nil, nil
	}
	return nil, errors.New("no such verb")
}

func newSeer(t *testing.T, size int) (*seer, *guestImage) {
	s := &seer{t: t, disk: make([]byte, size), staging: make([]byte, imageStage+1<<20)}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range s.disk {
		s.disk[i] = byte(r.Uint32())
	}
	here, there := net.Pipe()
	agent := wire.New(there, wire.FromSupervisor, s.answer)
	mine := wire.New(here, wire.FromAgent, nil)
	for _, c := range []*wire.Conn{agent, mine} {
		go c.Serve(t.Context())
		t.Cleanup(func() { c.Close() })
	}
	return s, newGuestImage(t.Context(), &side{agent: mine}, "data", int64(size), func(n int64) ([]byte, error) { return s.staging, nil })
}

// TestGuestImage checks that what is written is read back at once, and that it is on the disk after a sync and not
// before; stretches are there as soon as they are written. The device does not end with a whole chunk or page.
func TestGuestImage(t *testing.T) {
	const size = 3*imageChunk + 5*imagePage + 512
	s, g := newSeer(t, size)
	before, want := bytes.Clone(s.disk), bytes.Clone(s.disk)
	r := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		off := r.IntN(size/512) * 512
		b := make([]byte, min(size-off, 512*(1+r.IntN(700))))
		if _, err := g.ReadAt(b, int64(off)); err != nil || !bytes.Equal(b, want[off:off+len(b)]) {
			t.Fatalf("%d bytes at %d are others than were written: %v", len(b), off, err)
		}
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		if _, err := g.WriteAt(b, int64(off)); err != nil {
			t.Fatal(err)
		}
		copy(want[off:], b)
	}
	if s.writes != 0 || !bytes.Equal(s.disk, before) {
		t.Errorf("the disk was written to %d times before a sync", s.writes)
	}
	if err := g.Sync(); err != nil || !bytes.Equal(s.disk, want) {
		t.Fatalf("the disk is not what was written: %v", err)
	}
	if _, err := g.WriteAt(make([]byte, 1024), 0); err != nil {
		t.Fatal(err)
	}
	copy(want, make([]byte, 1024))
	piece := bytes.Repeat([]byte{9}, 4096)
	if err := g.WriteStretches(2, func(i int) (int64, [][]byte) { return int64(i) * 2 * imageChunk, [][]byte{piece, piece} }); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int{0, 4096, 2 * imageChunk, 2*imageChunk + 4096} {
		copy(want[off:], piece)
	}
	b := make([]byte, size)
	if _, err := g.ReadAt(b, 0); err != nil || !bytes.Equal(b, want) || !bytes.Equal(s.disk, want) {
		t.Errorf("after stretches the disk is another: %v", err)
	}
}

// TestGuestImageFails checks that each sync fails until the data is written, and that nothing is read or
// written beyond the end.
func TestGuestImageFails(t *testing.T) {
	s, g := newSeer(t, 2*imageChunk)
	s.fails = true
	if _, err := g.WriteAt(make([]byte, 4096), 4096); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := g.Sync(); err == nil {
			t.Error("no error of a sync that failed")
		}
	}
	s.fails = false
	if err := g.Sync(); err != nil || !bytes.Equal(s.disk[4096:8192], make([]byte, 4096)) {
		t.Errorf("it is not written once that works: %v", err)
	}
	for _, off := range []int64{-512, 2 * imageChunk, 2*imageChunk - 512} {
		if _, err := g.ReadAt(make([]byte, 1024), off); err == nil {
			t.Errorf("read at %d", off)
		}
		if _, err := g.WriteAt(make([]byte, 1024), off); err == nil {
			t.Errorf("wrote at %d", off)
		}
		if err := g.WriteStretches(1, func(int) (int64, [][]byte) { return off, [][]byte{make([]byte, 1024)} }); err == nil {
			t.Errorf("wrote a stretch at %d", off)
		}
	}
	g.staging = nil
	if _, err := g.WriteAt(make([]byte, 512), 0); err == nil {
		t.Error("wrote to what is only read")
	}
}
