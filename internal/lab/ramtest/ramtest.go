// Package ramtest writes the memory of a machine in the formats that package ram
// reads, for tests. It shares no code with that package.
package ramtest

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"understudy.dev/understudy/dead/addr"
)

// Piece is a contiguous part of a machine's memory.
type Piece struct {
	Phys addr.Phys
	Size int64       // in bytes
	Data io.ReaderAt // offset 0 is the byte at Phys
}

// Bytes returns a piece with the given bytes.
func Bytes(pa addr.Phys, b []byte) Piece {
	return Piece{Phys: pa, Size: int64(len(b)), Data: bytes.NewReader(b)}
}

// Range returns the range of memory that the piece covers.
func (p Piece) Range() addr.PhysRange {
	return addr.PhysRange{Start: p.Phys, End: p.Phys + addr.Phys(p.Size)}
}

// read returns the n bytes at pa.
func (p Piece) read(pa addr.Phys, n int) ([]byte, error) {
	b := make([]byte, n)
	_, err := p.Data.ReadAt(b, int64(pa-p.Phys))
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("read memory at %v: %w", pa, err)
	}
	return b, nil
}

// Format writes memory to an empty file.
type Format interface {
	Write(f *os.File, pieces []Piece) error
}

// Create writes memory to a new file.
func Create(path string, format Format, pieces []Piece) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := format.Write(f, pieces); err != nil {
		f.Close()
		return fmt.Errorf("write %s: %w", path, err)
	}
	return f.Close()
}

// copyAt writes a part of a piece to the file, and leaves holes where it is zero.
func copyAt(f *os.File, off int64, p Piece, r addr.PhysRange) error {
	const chunk = 64 << 10
	for pa := r.Start; pa < r.End; {
		n := min(chunk, int(r.End-pa))
		b, err := p.read(pa, n)
		if err != nil {
			return err
		}
		if !zero(b) {
			if _, err := f.WriteAt(b, off); err != nil {
				return err
			}
		}
		pa, off = pa+addr.Phys(n), off+int64(n)
	}
	return grow(f, off)
}

// grow makes the file at least size bytes long.
func grow(f *os.File, size int64) error {
	stat, err := f.Stat()
	if err != nil || stat.Size() >= size {
		return err
	}
	return f.Truncate(size)
}

var zeros [64 << 10]byte

func zero(b []byte) bool {
	for len(b) > len(zeros) {
		if !bytes.Equal(b[:len(zeros)], zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return bytes.Equal(b, zeros[:len(b)])
}

// note returns an ELF note.
func note(name string, desc []byte) []byte {
	b := le(uint32(len(name)+1), uint32(len(desc)), uint32(0))
	b = pad(append(append(b, name...), 0), 4)
	return pad(append(b, desc...), 4)
}

func pad(b []byte, to int) []byte {
	for len(b)%to != 0 {
		b = append(b, 0)
	}
	return b
}
