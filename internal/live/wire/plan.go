package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// File is one file of a plan: what the dead kernel had in memory for it.
type File struct {
	Inode      uint64
	Generation uint32
	Size       int64 // bytes, the dead kernel's i_size
	Atime      Time
	Mtime      Time
	Runs       []Run
	Holes      []Range // to be made: they must read as zeros, whatever is there now
	Cut        bool    // remove what lies beyond the end of the file, even if its size is right
}

// Time is a point in time as an inode keeps it.
type Time struct {
	Sec  int64
	Nsec uint32
}

// Run is a contiguous piece of a file and where the staging disk holds it.
// Off and Len are byte positions in the file; Staged is the byte position on
// the staging disk. Off and Staged are multiples of 512.
type Run struct {
	Off, Len, Staged int64
}

// ErrPlan is wrapped by every error of DecodePlan.
var ErrPlan = errors.New("plan is damaged")

const (
	planMagic   = "understudy plan\x01"
	blocksMagic = "understudy raw\x01"

	fileBytes = 8 + 4 + 8 + 2*(8+4) + 3*4
	runBytes  = 3 * 8
	holeBytes = 2 * 8
)

// EncodePlan lays a plan out as the agent reads it from the staging disk: a
// magic, the number of files, then each file, its runs and its holes, all little-endian
// and of fixed width.
func EncodePlan(files []File) []byte {
	size := len(planMagic) + 4
	for _, f := range files {
		size += fileBytes + len(f.Runs)*runBytes + len(f.Holes)*holeBytes
	}
	le := binary.LittleEndian
	b := append(make([]byte, 0, size), planMagic...)
	b = le.AppendUint32(b, uint32(len(files)))
	for _, f := range files {
		b = le.AppendUint64(b, f.Inode)
		b = le.AppendUint32(b, f.Generation)
		b = le.AppendUint64(b, uint64(f.Size))
		for _, t := range []Time{f.Atime, f.Mtime} {
			b = le.AppendUint64(b, uint64(t.Sec))
			b = le.AppendUint32(b, t.Nsec)
		}
		b = le.AppendUint32(b, uint32(len(f.Runs)))
		b = le.AppendUint32(b, uint32(len(f.Holes)))
		cut := uint32(0)
		if f.Cut {
			cut = 1
		}
		b = le.AppendUint32(b, cut)
		for _, r := range f.Runs {
			b = r.append(b)
		}
		for _, h := range f.Holes {
			b = le.AppendUint64(b, uint64(h.Off))
			b = le.AppendUint64(b, uint64(h.Len))
		}
	}
	return b
}

// DecodePlan reads what EncodePlan wrote and nothing else: counts are checked
// against the bytes at hand, positions against overflow.
func DecodePlan(b []byte) ([]File, error) {
	if len(b) < len(planMagic)+4 || string(b[:len(planMagic)]) != planMagic {
		return nil, fmt.Errorf("%w: no magic", ErrPlan)
	}
	d := decoder{b: b[len(planMagic):]}
	n := d.u32()
	if uint64(n)*fileBytes > uint64(len(d.b)) {
		return nil, fmt.Errorf("%w: %d files do not fit in %d bytes", ErrPlan, n, len(d.b))
	}
	files := make([]File, 0, n)
	for i := range n {
		f, err := d.file()
		if err != nil {
			return nil, fmt.Errorf("%w: file %d: %w", ErrPlan, i, err)
		}
		files = append(files, f)
	}
	if len(d.b) != 0 {
		return nil, fmt.Errorf("%w: %d bytes left over", ErrPlan, len(d.b))
	}
	return files, nil
}

// EncodeBlocks lays out which blocks of a disk are to be written, and where the
// staging disk has them: a magic, their number, then each, as the runs of a plan.
// Off is the position on the disk. Lengths are multiples of 512, too.
func EncodeBlocks(blocks []Run) []byte {
	le := binary.LittleEndian
	b := append(make([]byte, 0, len(blocksMagic)+4+len(blocks)*runBytes), blocksMagic...)
	b = le.AppendUint32(b, uint32(len(blocks)))
	for _, r := range blocks {
		b = r.append(b)
	}
	return b
}

// DecodeBlocks reads what EncodeBlocks wrote and nothing else.
func DecodeBlocks(b []byte) ([]Run, error) {
	if len(b) < len(blocksMagic)+4 || string(b[:len(blocksMagic)]) != blocksMagic {
		return nil, fmt.Errorf("%w: no magic of blocks", ErrPlan)
	}
	d := decoder{b: b[len(blocksMagic):]}
	n := d.u32()
	if uint64(n)*runBytes != uint64(len(d.b)) {
		return nil, fmt.Errorf("%w: %d blocks in %d bytes", ErrPlan, n, len(d.b))
	}
	blocks := make([]Run, n)
	for i := range blocks {
		r, err := d.run()
		if err == nil && r.Len%512 != 0 {
			err = fmt.Errorf("not whole sectors: %+v", r)
		}
		if err != nil {
			return nil, fmt.Errorf("%w: block %d: %w", ErrPlan, i, err)
		}
		blocks[i] = r
	}
	return blocks, nil
}

func (r Run) append(b []byte) []byte {
	for _, v := range []int64{r.Off, r.Len, r.Staged} {
		b = binary.LittleEndian.AppendUint64(b, uint64(v))
	}
	return b
}

type decoder struct {
	b     []byte
	short bool
}

func (d *decoder) file() (File, error) {
	f := File{Inode: d.u64(), Generation: d.u32(), Size: int64(d.u64())}
	f.Atime = Time{Sec: int64(d.u64()), Nsec: d.u32()}
	f.Mtime = Time{Sec: int64(d.u64()), Nsec: d.u32()}
	n, holes, cut := d.u32(), d.u32(), d.u32()
	if d.short || f.Size < 0 || cut > 1 {
		return f, errors.New("record is cut short, or has a negative size or an unknown value of Cut")
	}
	f.Cut = cut == 1
	if uint64(n)*runBytes+uint64(holes)*holeBytes > uint64(len(d.b)) {
		return f, fmt.Errorf("%d runs and %d holes do not fit in %d bytes", n, holes, len(d.b))
	}
	if n > 0 {
		f.Runs = make([]Run, n)
	}
	for i := range f.Runs {
		r, err := d.run()
		if err != nil {
			return f, fmt.Errorf("run %d: %w", i, err)
		}
		f.Runs[i] = r
	}
	if holes > 0 {
		f.Holes = make([]Range, holes)
	}
	for i := range f.Holes {
		h := Range{Off: int64(d.u64()), Len: int64(d.u64())}
		if h.Off < 0 || h.Len <= 0 || h.Off > math.MaxInt64-h.Len {
			return f, fmt.Errorf("hole %d: position out of range: %+v", i, h)
		}
		f.Holes[i] = h
	}
	return f, nil
}

func (d *decoder) run() (Run, error) {
	r := Run{Off: int64(d.u64()), Len: int64(d.u64()), Staged: int64(d.u64())}
	return r, r.check()
}

func (r Run) check() error {
	switch {
	case r.Off < 0 || r.Len <= 0 || r.Staged < 0:
		return fmt.Errorf("position out of range: %+v", r)
	case r.Off > math.MaxInt64-r.Len || r.Staged > math.MaxInt64-r.Len:
		return fmt.Errorf("end overflows: %+v", r)
	case r.Off%512 != 0 || r.Staged%512 != 0:
		return fmt.Errorf("not aligned to a sector: %+v", r)
	}
	return nil
}

func (d *decoder) take(n int) []byte {
	if len(d.b) < n {
		d.short = true
		d.b = nil
		return make([]byte, n)
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) u32() uint32 { return binary.LittleEndian.Uint32(d.take(4)) }
func (d *decoder) u64() uint64 { return binary.LittleEndian.Uint64(d.take(8)) }
