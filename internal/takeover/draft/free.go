package draft

import (
	"fmt"
	"io"

	"understudy.dev/understudy/dead/jbd2"
)

// Free is data for free blocks of the disk, which was not copied into the draft.
type Free struct {
	Off, Len int64 // in bytes
	// Data returns the bytes: pieces of memory, one after the other, of Len bytes together.
	// It may be called from several goroutines.
	Data func() ([][]byte, error)
}

// WriteFree implements jbd2.FreeDisk. Unless PutOff was called, the stretches are written
// like everything else.
func (d *Draft) WriteFree(n int, at func(int) (jbd2.Stretch, error)) error {
	for i := range n {
		s, err := at(i)
		if err != nil {
			return err
		}
		if s.Off < 0 || s.Off%sector != 0 || s.Len()%sector != 0 {
			return fmt.Errorf("write %d bytes at %d: these are not whole sectors", s.Len(), s.Off)
		}
		if !d.later {
			if err := d.writePieces(s); err != nil {
				return err
			}
		} else if s.Len() > 0 {
			d.put(piece{off: s.Off, len: s.Len(), free: func() (jbd2.Stretch, error) { return at(i) }})
		}
	}
	return nil
}

// writePieces writes a stretch at once.
func (d *Draft) writePieces(s jbd2.Stretch) error {
	b := make([]byte, 0, s.Len())
	for _, piece := range s.Data {
		b = append(b, piece...)
	}
	_, err := d.WriteAt(b, s.Off)
	return err
}

// Free returns what was put off, and not overwritten since, in the order of the disk.
func (d *Draft) Free() []Free {
	var out []Free
	for _, p := range d.pieces {
		if p.free != nil {
			out = append(out, Free{Off: p.off, Len: p.len, Data: p.data})
		}
	}
	return out
}

// Settle writes what was put off to the draft itself.
func (d *Draft) Settle() error {
	d.later = false
	for _, f := range d.Free() {
		data, err := f.Data()
		if err == nil {
			err = d.writePieces(jbd2.Stretch{Off: f.Off, Data: data})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// data returns the data of a piece that was put off.
func (p piece) data() ([][]byte, error) {
	s, err := p.free()
	if err != nil {
		return nil, err
	}
	var out [][]byte
	at, from, to := int64(0), p.at, p.at+p.len
	for _, b := range s.Data {
		n := int64(len(b))
		if first, last := max(from, at), min(to, at+n); first < last {
			out = append(out, b[first-at:last-at])
		}
		at += n
	}
	if at < to {
		return nil, fmt.Errorf("read what goes to byte %d of the disk: %w", p.off, io.ErrUnexpectedEOF)
	}
	return out, nil
}

// source returns what the data of a piece is read from, at the piece's offsets (at).
func (d *Draft) source(p piece) io.ReaderAt {
	if p.free == nil {
		return d.file
	}
	return putOff(p)
}

// putOff reads from a piece that was put off.
type putOff piece

func (p putOff) ReadAt(b []byte, off int64) (int, error) {
	part := piece(p)
	part.at, part.len = off, int64(len(b))
	data, err := part.data()
	done := 0
	for _, d := range data {
		done += copy(b[done:], d)
	}
	return done, err
}
