package jbd2

import (
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
)

// SectorSize is what a disk writes at once, in bytes.
const SectorSize = 512

// Recording is a Disk in memory on top of one that is only read. It keeps every
// write and sync in order, and can give the disk at any instant in between.
type Recording struct {
	base    io.ReaderAt
	ops     []Op
	sectors map[int64][]byte // by number; those that differ from base
}

// Op is a write, or a sync if Data is nil.
type Op struct {
	Offset int64
	Data   []byte
}

// IsSync reports whether it is a sync.
func (o Op) IsSync() bool { return o.Data == nil }

// NewRecording returns a disk that reads as base until it is written to.
func NewRecording(base io.ReaderAt) *Recording {
	return &Recording{base: base, sectors: make(map[int64][]byte)}
}

// WriteAt writes whole sectors.
func (r *Recording) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off%SectorSize != 0 || len(b)%SectorSize != 0 {
		return 0, fmt.Errorf("write %d bytes at %d: these are not whole sectors", len(b), off)
	}
	if len(b) == 0 {
		return 0, nil
	}
	op := Op{off, slices.Clone(b)}
	r.ops = append(r.ops, op)
	r.apply(op)
	return len(b), nil
}

func (r *Recording) apply(op Op) {
	for at := 0; at < len(op.Data); at += SectorSize {
		r.sectors[(op.Offset+int64(at))/SectorSize] = op.Data[at : at+SectorSize]
	}
}

// Sync records that it was called.
func (r *Recording) Sync() error {
	r.ops = append(r.ops, Op{})
	return nil
}

// ReadAt reads what was written, and from base elsewhere.
func (r *Recording) ReadAt(b []byte, off int64) (int, error) {
	n, err := r.base.ReadAt(b, off)
	covered := 0 // bytes from the front that are known
	for covered < len(b) {
		at := off + int64(covered)
		within := int(at % SectorSize)
		size := min(SectorSize-within, len(b)-covered)
		if sector, ok := r.sectors[at/SectorSize]; ok {
			copy(b[covered:covered+size], sector[within:])
		} else if covered+size > n {
			return max(n, covered), err
		}
		covered += size
	}
	return len(b), nil
}

// Ops returns the writes and syncs so far, in their order.
func (r *Recording) Ops() []Op { return slices.Clip(r.ops) }

// Prefix returns the disk after the first n of Ops.
func (r *Recording) Prefix(n int) *Recording {
	return r.subset(func(i int, _ Op) bool { return i < n })
}

// subset returns the disk after some of Ops, which are chosen by their number and
// content, in their order. Its own Ops are exactly those.
func (r *Recording) subset(chosen func(int, Op) bool) *Recording {
	out := NewRecording(r.base)
	for i, op := range r.ops {
		if chosen(i, op) {
			out.ops = append(out.ops, op)
			out.apply(op)
		}
	}
	return out
}

// Crash returns the disk after a crash at the first n of Ops: writes before the last
// sync among them are there; of later ones, those for which kept returns true.
func (r *Recording) Crash(n int, kept func(i int) bool) *Recording {
	synced := 0
	for i, op := range r.ops[:n] {
		if op.IsSync() {
			synced = i
		}
	}
	return r.subset(func(i int, _ Op) bool { return i < synced || i < n && kept(i) })
}

// Changed yields what was written, in the order of the disk, as pieces that
// do not touch each other.
func (r *Recording) Changed() iter.Seq2[int64, []byte] {
	return func(yield func(int64, []byte) bool) {
		numbers := slices.Sorted(maps.Keys(r.sectors))
		for len(numbers) > 0 {
			n := 1
			for n < len(numbers) && numbers[n] == numbers[0]+int64(n) {
				n++
			}
			piece := make([]byte, 0, n*SectorSize)
			for _, number := range numbers[:n] {
				piece = append(piece, r.sectors[number]...)
			}
			if !yield(numbers[0]*SectorSize, piece) {
				return
			}
			numbers = numbers[n:]
		}
	}
}
