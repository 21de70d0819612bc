package ramtest

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"understudy.dev/understudy/dead/addr"
)

// Flat is makedumpfile's flattened form (-F) of another format. Records are of odd
// sizes and in no order; some places are written twice, first wrongly.
type Flat struct {
	Format Format
	Seed   uint64
}

// Write implements Format.
func (fl Flat) Write(f *os.File, pieces []Piece) error {
	real, err := os.CreateTemp("", "flat-*")
	if err != nil {
		return err
	}
	defer os.Remove(real.Name())
	defer real.Close()
	if err := fl.Format.Write(real, pieces); err != nil {
		return err
	}
	stat, err := real.Stat()
	if err != nil {
		return err
	}
	head := append([]byte("makedumpfile\x00\x00\x00\x00"), 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1)
	if _, err := f.Write(append(head, make([]byte, addr.PageSize-len(head))...)); err != nil {
		return err
	}
	for _, r := range fl.records(stat.Size()) {
		b := make([]byte, r.n)
		if _, err := real.ReadAt(b, r.off); err != nil && err != io.EOF {
			return fmt.Errorf("flatten: %w", err)
		}
		if r.wrong {
			for i := range b {
				b[i] ^= 0x55
			}
		}
		if err := flatRecord(f, r.off, int64(r.n), b); err != nil {
			return err
		}
	}
	return flatRecord(f, -1, -1, nil)
}

type record struct {
	off   int64
	n     int
	wrong bool
}

func (fl Flat) records(size int64) []record {
	rng := rand.New(rand.NewPCG(fl.Seed, 1))
	// Small files in small records, so that there are many of them.
	most := int(max(100, min(1<<20, size/40)))
	var wrong, right []record
	for off := int64(0); off < size; {
		n := int(min(size-off, int64(1+rng.IntN(most))))
		if right = append(right, record{off: off, n: n}); rng.IntN(5) == 0 {
			from := max(0, off-int64(rng.IntN(100)))
			wrong = append(wrong, record{off: from, n: int(off-from) + n/2 + 1, wrong: true})
		}
		off += int64(n)
	}
	rng.Shuffle(len(right), func(i, j int) { right[i], right[j] = right[j], right[i] })
	return append(wrong, right...)
}

func flatRecord(f *os.File, off, n int64, b []byte) error {
	head := binary.BigEndian.AppendUint64(nil, uint64(off))
	head = binary.BigEndian.AppendUint64(head, uint64(n))
	_, err := f.Write(append(head, b...))
	return err
}
