package journal

import (
	"bytes"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/ram"
)

// straight is a disk that writes many stretches at once, each in its own goroutine.
type straight struct{ *jbd2.Recording }

func (d straight) WriteStretches(n int, at func(int) (int64, [][]byte)) error {
	var mu sync.Mutex
	var group sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		group.Go(func() {
			off, data := at(i)
			mu.Lock()
			defer mu.Unlock()
			_, errs[i] = d.WriteAt(bytes.Join(data, nil), off)
		})
	}
	group.Wait()
	return errors.Join(errs...)
}

// fading is memory that can be read only so many times.
type fading struct {
	ram.Memory
	data []byte
	left *atomic.Int64
}

var errFaded = errors.New("it is gone")

func (m fading) View(pa addr.Phys, n int) ([]byte, error) {
	if m.left.Add(-1) < 0 {
		return nil, errFaded
	}
	return m.data[pa:][:n], nil
}

// TestWriteStraight writes blocks straight from memory, padded with zeros. Memory that is missing is noticed
// before anything is written, and is an error if it goes missing later.
func TestWriteStraight(t *testing.T) {
	const blocks, used = 40, 1000
	for _, tc := range []struct {
		name    string
		reads   int64
		written bool
		err     error
	}{
		{"whole", 2 * blocks, true, nil},
		{"not there", blocks - 1, false, errFaded},
		{"gone meanwhile", 2*blocks - 1, true, errFaded},
	} {
		t.Run(tc.name, func(t *testing.T) {
			disk := straight{jbd2.NewRecording(bytes.NewReader(make([]byte, 2*blocks*4096)))}
			memory := fading{data: bytes.Repeat([]byte("memory"), blocks*4096/6+1), left: new(atomic.Int64)}
			memory.left.Store(tc.reads)
			f := &finisher{Rescue: &Rescue{mem: memory}, disk: disk, report: &Report{}}
			var data []block
			for n := range int64(blocks) {
				data = append(data, block{ino: 12, disk: 2 * n * 4096, phys: addr.Phys(n * 4096), len: 4096, used: used})
			}
			if err := f.writeAll(data); !errors.Is(err, tc.err) {
				t.Fatal(err)
			}
			if written := len(disk.Ops()) > 0; written != tc.written {
				t.Errorf("something was written: %v", written)
			}
			got := make([]byte, 4096)
			for _, b := range data {
				if _, err := disk.ReadAt(got, b.disk); err != nil {
					t.Fatal(err)
				}
				want := make([]byte, 4096)
				copy(want, memory.data[b.phys:][:used])
				if tc.err == nil && !bytes.Equal(got, want) {
					t.Errorf("the block at %d has %q", b.disk, got[:16])
				}
			}
		})
	}
}
