package ramtest

import (
	"io"
	"os"

	"github.com/golang/snappy"

	"understudy.dev/understudy/dead/addr"
)

// LiME is the format of LiME (format=lime).
type LiME struct{}

// Write implements Format.
func (LiME) Write(f *os.File, pieces []Piece) error {
	var pos int64
	for _, p := range pieces {
		r := p.Range()
		if _, err := f.WriteAt(limeHeader("EMiL", 1, r), pos); err != nil {
			return err
		}
		pos += 32
		if err := copyAt(f, pos, p, r); err != nil {
			return err
		}
		pos += p.Size
	}
	return nil
}

func limeHeader(magic string, version uint32, r addr.PhysRange) []byte {
	return append([]byte(magic), le(version, uint64(r.Start), uint64(r.End)-1, uint64(0))...)
}

// AVML is the format of AVML: ranges of at most 16 MiB, without those that are all
// zeros.
type AVML struct {
	Compress bool
}

// Write implements Format.
func (a AVML) Write(f *os.File, pieces []Piece) error {
	const block = 16 << 20
	for _, p := range pieces {
		for r := p.Range(); r.Len() > 0; {
			part := addr.PhysRange{Start: r.Start, End: min(r.End, r.Start+block)}
			b, err := p.read(part.Start, int(part.Len()))
			if err != nil {
				return err
			}
			if !zero(b) {
				if err := a.writeBlock(f, part, b); err != nil {
					return err
				}
			}
			r.Start = part.End
		}
	}
	return nil
}

func (a AVML) writeBlock(f *os.File, r addr.PhysRange, b []byte) error {
	if !a.Compress {
		_, err := f.Write(append(limeHeader("EMiL", 1, r), b...))
		return err
	}
	if _, err := f.Write(limeHeader("AVML", 2, r)); err != nil {
		return err
	}
	start, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	w := snappy.NewBufferedWriter(f)
	if _, err := w.Write(b); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	end, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	_, err = f.Write(le(uint64(end - start)))
	return err
}
