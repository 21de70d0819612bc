package device

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// TestWriteStretches writes stretches of whole pages, of sectors, and of numbers of bytes that
// direct I/O does not take, also on a file system without direct I/O.
func TestWriteStretches(t *testing.T) {
	for name, dir := range map[string]string{"disk": t.TempDir(), "memory": "/dev/shm"} {
		t.Run(name, func(t *testing.T) {
			f, err := os.CreateTemp(dir, "direct")
			if err != nil {
				t.Fatal(err)
			}
			defer os.Remove(f.Name())
			defer f.Close()
			want := make([]byte, 8<<20)
			if err := f.Truncate(int64(len(want))); err != nil {
				t.Fatal(err)
			}
			rng := rand.New(rand.NewPCG(1, 2))
			source := make([]byte, 6<<20)
			for i := range source {
				source[i] = byte(rng.Uint32())
			}
			type stretch struct {
				off  int64
				data [][]byte
			}
			var all []stretch
			off := int64(0)
			for _, piece := range []int{4096, 512, 100, 1024, 4096} {
				s := stretch{off: off}
				for n := 0; n < 1500*4096/piece/4; n++ {
					from := rng.IntN(len(source)-piece) / piece * piece
					s.data = append(s.data, source[from:from+piece])
				}
				all = append(all, s)
				b := bytes.Join(s.data, nil)
				copy(want[off:], b)
				off += int64(len(b)+4095) / 4096 * 4096
			}
			d := Direct{File: f}
			err = d.WriteStretches(len(all), func(i int) (int64, [][]byte) { return all[i].off, all[i].data })
			if err := errors.Join(err, d.Sync()); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(f.Name())
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%d bytes, %v: not what was written", len(got), err)
			}
		})
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "closed"))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := (Direct{File: f}).WriteStretches(1, func(int) (int64, [][]byte) { return 0, [][]byte{make([]byte, 512)} }); err == nil {
		t.Error("written to a closed file")
	}
}
