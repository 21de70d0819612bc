package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"

	"understudy.dev/understudy/internal/live/wire"
)

// guestImage is the device of a disk's file system where only a guest can see it: LUKS, whose key
// is in the guest, LVM, or an md array. It serves as the disk's image as long as nobody has it
// mounted. Writes are kept here until Sync, which passes them through the staging disk.
type guestImage struct {
	ctx     context.Context
	side    *side
	disk    string
	size    int64
	staging func(int64) ([]byte, error) // like takeover.Machine.Staging; nil if the device is only read

	mu     sync.Mutex
	chunks map[int64][]byte   // chunks that were read or written, by offset
	dirty  map[int64]struct{} // pages of the chunks that are not on the disk yet
}

// Units of a guestImage, in bytes. A page is a multiple of any device's block size.
const (
	imageChunk = 256 << 10
	imagePage  = 4096
	imageKept  = 256      // the number of chunks that are kept
	imageStage = 64 << 20 // written with one call
)

func newGuestImage(ctx context.Context, sd *side, disk string, size int64, staging func(int64) ([]byte, error)) *guestImage {
	return &guestImage{
		ctx: ctx, side: sd, disk: disk, size: size, staging: staging,
		chunks: make(map[int64][]byte), dirty: make(map[int64]struct{}),
	}
}

// chunk returns the chunk at an offset.
func (g *guestImage) chunk(at int64) ([]byte, error) {
	if b, ok := g.chunks[at]; ok {
		return b, nil
	}
	if len(g.chunks) >= imageKept && len(g.dirty) == 0 {
		clear(g.chunks)
	}
	n := min(imageChunk, g.size-at)
	var r wire.ReadResult
	if err := g.side.agent.Call(g.ctx, wire.Read, wire.ReadRequest{Disk: g.disk, Off: at, Len: n}, &r); err != nil {
		return nil, err
	}
	if int64(len(r.Data)) != n {
		return nil, fmt.Errorf("read disk %s: the guest gave %d bytes of %d", g.disk, len(r.Data), n)
	}
	g.chunks[at] = r.Data
	return r.Data, nil
}

// each calls do for the part of each chunk that lies within n bytes at off.
func (g *guestImage) each(n int, off int64, do func(part []byte, done int, at int64)) error {
	if off < 0 || off > g.size-int64(n) {
		return fmt.Errorf("%d bytes at %d of a device of %d: %w", n, off, g.size, io.ErrUnexpectedEOF)
	}
	for done := 0; done < n; {
		at := off + int64(done)
		first := at / imageChunk * imageChunk
		b, err := g.chunk(first)
		if err != nil {
			return err
		}
		part := b[at-first:]
		part = part[:min(len(part), n-done)]
		do(part, done, at)
		done += len(part)
	}
	return nil
}

func (g *guestImage) ReadAt(b []byte, off int64) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.each(len(b), off, func(part []byte, done int, _ int64) { copy(b[done:], part) }); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (g *guestImage) WriteAt(b []byte, off int64) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.staging == nil {
		return 0, errors.New("it is open read-only")
	}
	err := g.each(len(b), off, func(part []byte, done int, at int64) {
		copy(part, b[done:])
		for p := at / imagePage * imagePage; p < at+int64(len(part)); p += imagePage {
			g.dirty[p] = struct{}{}
		}
	})
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

// Sync makes the guest write everything that was written here, durably.
func (g *guestImage) Sync() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.flush()
}

func (g *guestImage) flush() error {
	pages := slices.Sorted(maps.Keys(g.dirty))
	batch := g.batch()
	for _, p := range pages {
		first := p / imageChunk * imageChunk
		data := g.chunks[first][p-first:]
		if err := batch.add(p, data[:min(imagePage, len(data))]); err != nil {
			return err
		}
	}
	if err := batch.end(); err != nil {
		return err
	}
	clear(g.dirty)
	return nil
}

// WriteStretches writes stretches that do not overlap, in any order. They are durable when it returns.
func (g *guestImage) WriteStretches(n int, at func(int) (off int64, data [][]byte)) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.flush(); err != nil {
		return err
	}
	clear(g.chunks) // they are older than the stretches
	batch := g.batch()
	for i := range n {
		off, data := at(i)
		for _, piece := range data {
			if off < 0 || off > g.size-int64(len(piece)) {
				return fmt.Errorf("write %d bytes at %d of a device of %d: %w", len(piece), off, g.size, io.ErrShortWrite)
			}
			if err := batch.add(off, piece); err != nil {
				return err
			}
			off += int64(len(piece))
		}
	}
	return batch.end()
}

// batch is what the guest is to write with one call.
type batch struct {
	g      *guestImage
	runs   []wire.Run
	filled int64 // bytes that are staged
}

func (g *guestImage) batch() *batch { return &batch{g: g} }

// add stages whole sectors.
func (b *batch) add(off int64, data []byte) error {
	for len(data) > 0 {
		if b.filled == imageStage {
			if err := b.end(); err != nil {
				return err
			}
		}
		room, err := b.g.staging(imageStage)
		if err != nil {
			return err
		}
		n := copy(room[b.filled:imageStage], data)
		if last := len(b.runs) - 1; last >= 0 && b.runs[last].Off+b.runs[last].Len == off {
			b.runs[last].Len += int64(n)
		} else {
			b.runs = append(b.runs, wire.Run{Off: off, Len: int64(n), Staged: b.filled})
		}
		b.filled += int64(n)
		off, data = off+int64(n), data[n:]
	}
	return nil
}

// end makes the guest write what is staged.
func (b *batch) end() error {
	if len(b.runs) == 0 {
		return nil
	}
	list := wire.EncodeBlocks(b.runs)
	room, err := b.g.staging(imageStage + int64(len(list)))
	if err != nil {
		return err
	}
	copy(room[imageStage:], list)
	r := wire.WriteRequest{Disk: b.g.disk, Blocks: imageStage, Len: int64(len(list))}
	if err := b.g.side.agent.Call(b.g.ctx, wire.Write, r, nil); err != nil {
		return err
	}
	b.runs, b.filled = nil, 0
	return nil
}
