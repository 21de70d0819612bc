package draft

import (
	"bufio"
	"fmt"
	"io"
	"time"
)

// Progress is how far e2fsck has come.
type Progress struct {
	Pass int // 1 to 5
	Done float64
	// Left is how long the rest takes if it goes on at the same rate; negative if that cannot
	// be said yet.
	Left time.Duration
}

func (p Progress) String() string {
	if p.Left < 0 {
		return fmt.Sprintf("pass %d, %.0f %%", p.Pass, p.Done*100)
	}
	return fmt.Sprintf("pass %d, %.0f %%, some %v more", p.Pass, p.Done*100, p.Left.Round(time.Second))
}

// passEnds are the parts of the whole that are done at the end of each pass, as e2fsck itself
// reckons (e2fsck/unix.c, e2fsck_tbl).
var passEnds = [...]float64{0, 0.70, 0.90, 0.92, 0.95, 1}

const (
	// tellEvery is how often progress is reported.
	tellEvery = 2 * time.Second
	// early is the part of the whole before which the remaining time is not estimated.
	early = 0.02
)

// follow reads what e2fsck -C writes: lines with the pass, how much of it is done, out of how
// much, and the device (e2fsck(8)).
func follow(r io.Reader, began time.Time, tell func(Progress)) {
	var last time.Time
	for lines := bufio.NewScanner(r); lines.Scan(); {
		p, ok := progress(lines.Text(), time.Since(began))
		if ok && time.Since(last) >= tellEvery {
			last = time.Now()
			tell(p)
		}
	}
	_, _ = io.Copy(io.Discard, r) // output that is no line must not keep e2fsck waiting
}

// progress returns what one line says, after that time.
func progress(line string, took time.Duration) (p Progress, ok bool) {
	var at, of uint64
	if n, _ := fmt.Sscan(line, &p.Pass, &at, &of); n < 3 || p.Pass < 1 || p.Pass >= len(passEnds) || of == 0 {
		return p, false
	}
	from, to := passEnds[p.Pass-1], passEnds[p.Pass]
	p.Done, p.Left = from+(to-from)*min(1, float64(at)/float64(of)), -1
	if p.Done >= early {
		p.Left = time.Duration(float64(took) * (1 - p.Done) / p.Done)
	}
	return p, true
}
