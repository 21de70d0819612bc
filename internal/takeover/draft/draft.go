// Package draft is a disk as it is to be, on top of one that is only read: what is written to
// it can be looked at, checked by e2fsck(8), and thrown away.
package draft

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"slices"
	"sort"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
)

// Draft is a jbd2.Disk on top of one that is only read. Writes are appended to a file without a
// name, so that there may be more of them than memory.
type Draft struct {
	base   io.ReaderAt
	dir    string   // where the file is
	file   *os.File // nil: nothing was written yet
	mapped []byte   // the file, for Changed
	end    int64    // of the file, in bytes
	pieces []piece  // ascending, without overlaps
	later  bool     // what WriteFree takes is left where it is
	err    error    // the first error of a write
}

// sector is the unit of a disk, in bytes.
const sector = 512

// New returns a draft on top of base. Its file will be in the directory dir.
func New(base io.ReaderAt, dir string) *Draft { return &Draft{base: base, dir: dir} }

// PutOff makes WriteFree leave the data for free blocks where it is, until Free or Settle.
func (d *Draft) PutOff() { d.later = true }

// Failed returns why something could not be written, or nil if everything could.
func (d *Draft) Failed() error { return d.err }

// piece is a write to one place of the disk, and where its data is: in the file, or, if free is
// not nil, in what free returns.
type piece struct {
	off, len, at int64
	free         func() (jbd2.Stretch, error)
}

// joined is the largest size to which pieces are joined, in bytes.
const joined = 16 << 20

// WriteAt writes whole sectors.
func (d *Draft) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off%sector != 0 || len(b)%sector != 0 {
		return 0, fmt.Errorf("write %d bytes at %d: these are not whole sectors", len(b), off)
	}
	if len(b) == 0 {
		return 0, nil
	}
	err := d.err
	if err == nil && d.file == nil {
		d.file, err = nameless(d.dir)
	}
	if err == nil {
		_, err = d.file.WriteAt(b, d.end)
	}
	if err != nil {
		d.err = err
		return 0, err
	}
	d.put(piece{off: off, len: int64(len(b)), at: d.end})
	d.end += int64(len(b))
	return len(b), nil
}

// nameless makes a file that is gone once it is closed.
func nameless(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".understudy-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// put adds a piece, in place of what was written there before.
func (d *Draft) put(p piece) {
	end := p.off + p.len
	from := d.find(p.off)
	to := from
	var around []piece
	for ; to < len(d.pieces) && d.pieces[to].off < end; to++ {
		if was := d.pieces[to]; was.off < p.off {
			around = append(around, piece{was.off, p.off - was.off, was.at, was.free})
		}
	}
	around = append(around, p)
	if to > from {
		if was := d.pieces[to-1]; was.off+was.len > end {
			around = append(around, piece{end, was.off + was.len - end, was.at + end - was.off, was.free})
		}
	}
	if from > 0 && to == from {
		if last := &d.pieces[from-1]; last.free == nil && p.free == nil && last.off+last.len == p.off && last.at+last.len == p.at && last.len+p.len <= joined {
			last.len += p.len
			return
		}
	}
	d.pieces = slices.Replace(d.pieces, from, to, around...)
}

// find returns the index of the first piece that ends behind a byte.
func (d *Draft) find(off int64) int {
	return sort.Search(len(d.pieces), func(i int) bool { return d.pieces[i].off+d.pieces[i].len > off })
}

// ReadAt reads what was written, and elsewhere what is on the disk.
func (d *Draft) ReadAt(b []byte, off int64) (int, error) {
	done := 0
	for next := d.find(off); done < len(b); {
		at, n := off+int64(done), len(b)-done
		from, where := d.base, at
		if next < len(d.pieces) {
			if p := d.pieces[next]; p.off <= at {
				from, where, n = d.source(p), p.at+at-p.off, min(n, int(p.off+p.len-at))
				next++
			} else {
				n = min(n, int(p.off-at))
			}
		}
		got, err := from.ReadAt(b[done:done+n], where)
		if done += got; got < n {
			return done, errors.Join(err, io.ErrUnexpectedEOF)
		}
	}
	return done, nil
}

// Sync does nothing: what is to be durable is copied to a disk (Copy).
func (d *Draft) Sync() error { return nil }

// Mark is a state of a draft.
type Mark struct{ pieces []piece }

// Mark returns the state that Reset restores.
func (d *Draft) Mark() Mark { return Mark{slices.Clone(d.pieces)} }

// Reset throws away what was written since the mark.
func (d *Draft) Reset(m Mark) { d.pieces = m.pieces }

// Changed iterates over what was written, in the order of the disk, except what is Free. The
// data that it yields is valid until Close.
func (d *Draft) Changed() (iter.Seq2[int64, []byte], error) {
	if d.end > 0 && d.mapped == nil {
		var err error
		if d.mapped, err = unix.Mmap(int(d.file.Fd()), 0, int(d.end), unix.PROT_READ, unix.MAP_SHARED); err != nil {
			return nil, fmt.Errorf("map what was written: %w", err)
		}
	}
	return func(yield func(int64, []byte) bool) {
		for _, p := range d.pieces {
			if p.free != nil {
				continue
			}
			if !yield(p.off, d.mapped[p.at:p.at+p.len:p.at+p.len]) {
				return
			}
		}
	}, nil
}

// Copy writes what was written, except what is Free, to a disk, durably. The first superblock of
// the ext family comes last, once all else is durable. Until then that superblock says what it
// said before, such as that the file system is not clean: nobody takes an interrupted copy for a
// complete one.
func (d *Draft) Copy(disk jbd2.Disk) error {
	changed, err := d.Changed()
	if err != nil {
		return err
	}
	put := func(from, end int64) error {
		for off, data := range changed {
			at, to := max(from, off), min(end, off+int64(len(data)))
			if at >= to {
				continue
			}
			if _, err := disk.WriteAt(data[at-off:to-off], at); err != nil {
				return err
			}
		}
		return nil
	}
	const super, behind = ext4.SuperOffset, ext4.SuperOffset + ext4.SuperSize
	if err := errors.Join(put(0, super), put(behind, math.MaxInt64)); err != nil {
		return err
	}
	if err := disk.Sync(); err != nil {
		return err
	}
	if err := put(super, behind); err != nil {
		return err
	}
	return disk.Sync()
}

// Close removes the file.
func (d *Draft) Close() error {
	var errs []error
	if d.mapped != nil {
		errs = append(errs, unix.Munmap(d.mapped))
	}
	if d.file != nil {
		errs = append(errs, d.file.Close())
	}
	d.mapped, d.file = nil, nil
	return errors.Join(errs...)
}
