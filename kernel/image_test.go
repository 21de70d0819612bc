package kernel_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"understudy/internal/fixture"
	"understudy/kernel"
	"understudy/ram"
)

func openImage(t testing.TB, spec fixture.Spec) ram.Memory {
	t.Helper()
	mem, err := ram.OpenFile(fixture.Get(t, spec).RAM)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	return mem
}

func TestFindInImage(t *testing.T) {
	for name, spec := range fixture.Common {
		t.Run(name, func(t *testing.T) {
			mem := openImage(t, spec)
			start := time.Now()
			k, err := kernel.Find(mem)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("found %s, offset %#x, in %v", k.Release, k.Offset, time.Since(start))
			t.Log(k.Banner)
			if err := k.StillThere(); err != nil {
				t.Error(err)
			}
			if cpu, panicked, err := k.PanicCPU(); err != nil || !panicked {
				t.Errorf("panic CPU %d, %v, %v", cpu, panicked, err)
			}
			if why, err := k.PanicMessage(); why != "sysrq triggered crash" || err != nil {
				t.Errorf("panic message %q, %v", why, err)
			}
			var last []string
			for r, err := range k.Log() {
				if err != nil {
					t.Fatal(err)
				}
				last = append(last, r.Text)
			}
			if n := len(last); n < 100 || !strings.HasPrefix(last[n-1], "---[ end Kernel panic") || !strings.HasPrefix(last[0], "Linux version") {
				t.Errorf("log of %d records ends with %q", n, last[max(0, n-3):])
			}
			// A module's structure, with a member of a type of the image.
			types, err := k.Module("virtio_blk")
			if err != nil {
				t.Fatal(err)
			}
			l := types.Layout("virtio_blk")
			if f := l.Field("vdev_mutex.owner", 8); l.Err() != nil || !f.Present() {
				t.Errorf("virtio_blk.vdev_mutex.owner: %v, %v", f, l.Err())
			}
			if _, err := k.Module("absent"); !errors.Is(err, kernel.ErrNotFound) {
				t.Errorf("absent module: %v", err)
			}
		})
	}
}
