package device

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
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

// TestWriteStretchesInOnePage: stretches within one page of a block device, of which some can be written past the page cache
// and others cannot, are all written. If they were mixed, the sync would fail (EIO), or some be lost.
func TestWriteStretchesInOnePage(t *testing.T) {
	const size, count = 512, 16 << 10
	image := filepath.Join(t.TempDir(), "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size*count)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", image).Output()
	if err != nil {
		t.Skipf("losetup: %v (it needs root)", err)
	}
	loop := strings.TrimSpace(string(out))
	defer func() {
		if out, err := exec.Command("losetup", "--detach", loop).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	}()
	f, err := os.OpenFile(loop, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := make([]byte, size*count)
	rand.NewChaCha8([32]byte{}).Read(want)
	err = Direct{File: f}.WriteStretches(count, func(i int) (int64, [][]byte) {
		data := want[i*size:][:size]
		if i%2 > 0 {
			data = append(make([]byte, 1, 1+size), data...)[1:] // memory that direct I/O does not take
		}
		return int64(i) * size, [][]byte{data}
	})
	if err := errors.Join(err, f.Sync()); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("it is not what was written: %v", err)
	}
}
