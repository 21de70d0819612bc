package draft

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"understudy.dev/understudy/dead/jbd2"
)

// TestDraft writes and reads at random, and checks that reads return what a copy of the disk
// has. What changed must be all that was written.
func TestDraft(t *testing.T) {
	const size = 64 << 10
	putOff := 0
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		base := make([]byte, size)
		for i := range base {
			base[i] = byte(rng.Uint32())
		}
		want := bytes.Clone(base)
		d := &Draft{base: bytes.NewReader(base), dir: t.TempDir()}
		later, settled := seed%2 == 0, seed%4 == 0
		if later {
			d.PutOff()
		}
		at := int64(0)
		for range 1 + rng.IntN(60) {
			if rng.IntN(3) > 0 { // otherwise behind the last write
				at = rng.Int64N(size/sector) * sector
			}
			b := make([]byte, rng.Int64N(min(20, (size-at)/sector)+1)*sector)
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			write := func() error { _, err := d.WriteAt(b, at); return err }
			if later && rng.IntN(3) == 0 && len(b) > 0 {
				cut := rng.IntN(len(b))
				s := jbd2.Stretch{Off: at, Data: [][]byte{b[:cut], b[cut:]}}
				write = func() error { return d.WriteFree(1, func(int) (jbd2.Stretch, error) { return s, nil }) }
			}
			if err := write(); err != nil {
				t.Fatal(err)
			}
			copy(want[at:], b)
			at += int64(len(b))
			from := rng.IntN(size)
			got := make([]byte, rng.IntN(size-from)+1)
			if _, err := d.ReadAt(got, int64(from)); err != nil || !bytes.Equal(got, want[from:from+len(got)]) {
				t.Fatalf("seed %d: read %d bytes at %d: %v", seed, len(got), from, err)
			}
		}
		if n, err := d.ReadAt(make([]byte, 100), size-50); n != 50 || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("behind the end: %d, %v", n, err)
		}
		if settled {
			if err := d.Settle(); err != nil {
				t.Fatal(err)
			}
		}
		if putOff += len(d.Free()); len(d.Free()) > 0 && (settled || !later) {
			t.Errorf("seed %d: %d pieces are put off", seed, len(d.Free()))
		}
		changed, err := d.Changed()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range d.Free() {
			if data, err := f.Data(); err != nil || copy(base[f.Off:][:f.Len], bytes.Join(data, nil)) != int(f.Len) {
				t.Fatalf("seed %d: what was put off: %v", seed, err)
			}
		}
		end := int64(0)
		for off, b := range changed {
			if off < end || len(b) == 0 {
				t.Fatalf("seed %d: %d bytes at %d, the last ended at %d", seed, len(b), off, end)
			}
			copy(base[off:], b)
			end = off + int64(len(b))
		}
		if !bytes.Equal(base, want) {
			t.Errorf("seed %d: what changed is not what was written", seed)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if left, err := os.ReadDir(d.dir); err != nil || len(left) > 0 {
			t.Errorf("%v is left, %v", left, err)
		}
	}
	if putOff == 0 {
		t.Error("nothing was put off")
	}
}

// TestDraftFails checks that an error stays, where nothing can be written.
func TestDraftFails(t *testing.T) {
	d := &Draft{base: bytes.NewReader(make([]byte, 4096)), dir: "/nowhere"}
	for range 2 {
		if _, err := d.WriteAt(make([]byte, sector), 0); !errors.Is(err, os.ErrNotExist) || d.err == nil {
			t.Error(err)
		}
	}
	if _, err := d.WriteAt(make([]byte, 7), 0); err == nil {
		t.Error("a part of a sector was written")
	}
}

// watchedDisk is a disk that checks the order in which it is written.
type watchedDisk struct {
	bytes.Reader
	t      *testing.T
	now    []byte
	others bool // something else than the superblock is not durable
	super  bool // the superblock was written
	synced bool // all of it is durable
}

func (w *watchedDisk) WriteAt(b []byte, off int64) (int, error) {
	switch is := off >= 1024 && off+int64(len(b)) <= 2048; {
	case is && w.others:
		w.t.Errorf("%d bytes at %d are written before the others are durable", len(b), off)
	case is:
		w.super = true
	case w.super || off < 2048 && off+int64(len(b)) > 1024:
		w.t.Errorf("%d bytes at %d are not behind the superblock", len(b), off)
	}
	w.others, w.synced = !w.super, false
	return copy(w.now[off:], b), nil
}

func (w *watchedDisk) Sync() error { w.others, w.synced = false, true; return nil }

// TestCopy: a copy that is broken off at any instant must not have the superblock, which says
// that the file system is clean, without all the rest.
func TestCopy(t *testing.T) {
	const size = 64 << 10
	for name, writes := range map[string][][2]int64{
		"a superblock alone":              {{1024, 1024}},
		"in a block of 4 KiB":             {{8192, 4096}, {0, 4096}, {4096, 4096}},
		"in a piece with what is behind":  {{1024, 1024}, {2048, 1024}, {3072, 8192}},
		"one sector of it":                {{1536, 512}, {32768, 512}},
		"in two pieces":                   {{512, 1024}, {16384, 512}, {1536, 1024}},
		"no superblock":                   {{512, 512}, {2048, 512}, {size - 512, 512}},
		"what reaches to the last sector": {{0, size}},
	} {
		t.Run(name, func(t *testing.T) {
			base := make([]byte, size)
			d := New(bytes.NewReader(base), t.TempDir())
			defer d.Close()
			want := bytes.Clone(base)
			super := false
			for i, w := range writes {
				b := bytes.Repeat([]byte{byte(i + 1)}, int(w[1]))
				if _, err := d.WriteAt(b, w[0]); err != nil {
					t.Fatal(err)
				}
				copy(want[w[0]:], b)
				super = super || w[0] < 2048 && w[0]+w[1] > 1024
			}
			to := &watchedDisk{t: t, now: base}
			if err := d.Copy(to); err != nil {
				t.Fatal(err)
			}
			if !to.synced || to.super != super || !bytes.Equal(to.now, want) {
				t.Errorf("durable: %v, with a superblock: %v, want %v; the same: %v", to.synced, to.super, super, bytes.Equal(to.now, want))
			}
		})
	}
}
