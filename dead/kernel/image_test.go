package kernel_test

import (
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/fixture/record"
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

// images returns the crashes that are common to all packages, and one of each kernel.
func images() map[string]fixture.Spec {
	all := maps.Clone(fixture.Common)
	for _, name := range fixture.Kernels {
		all[name] = fixture.Everything(name)
	}
	return all
}

func TestFindInImage(t *testing.T) {
	for name, spec := range images() {
		t.Run(name, func(t *testing.T) {
			image := fixture.Get(t, spec)
			mem := openImage(t, spec)
			start := time.Now()
			k, err := kernel.Find(mem)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("found %s, offset %#x, in %v", k.Release, k.Offset, time.Since(start))
			t.Log(k.Banner)
			if k.Release != image.Release || !strings.HasPrefix(k.Banner, "Linux version "+image.Release+" ") {
				t.Errorf("found %q, %q instead of %q", k.Release, k.Banner, image.Release)
			}
			if err := k.StillThere(); err != nil {
				t.Error(err)
			}
			if absent, err := k.Absent(); len(absent) > 0 || err != nil {
				t.Errorf("of its memory %v is not in the image, %v", absent, err)
			}
			checkPanic(t, k)
			checkUnsaved(t, k, image)
			checkModule(t, k)
		})
	}
}

func checkPanic(t *testing.T, k *kernel.Kernel) {
	t.Helper()
	if n, err := k.OnlineCPUs(); err != nil || n != 1 {
		t.Errorf("%d CPUs are online, %v", n, err)
	}
	if cpu, panicked, err := k.PanicCPU(); err != nil || !panicked || cpu > 1 {
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
	first := "Linux version"
	if k.Architecture() == "aarch64" {
		first = "Booting Linux on physical CPU"
	}
	if n := len(last); n < 100 || !strings.HasPrefix(last[n-1], "---[ end Kernel panic") || !strings.HasPrefix(last[0], first) {
		t.Errorf("log of %d records ends with %q", n, last[max(0, n-3):])
	}
}

// checkUnsaved checks that the kernel counts at least the pages that the guest knew to be in memory only, less
// what its CPUs may hold back from the counters, and no more than there is memory. What ext4 writes without
// delay, what other file systems write at their own times, and what was under way may be counted or not.
func checkUnsaved(t *testing.T, k *kernel.Kernel, image *fixture.Image) {
	t.Helper()
	type page struct {
		fs  string
		ino uint64
		n   int
	}
	dirty := make(map[page]bool)
	for _, f := range image.Truth {
		if !strings.HasPrefix(f.FS, "ext4") || strings.Contains(image.Dir, "writeback") {
			continue
		}
		for _, unit := range f.Changed {
			dirty[page{f.FS, f.Ino, unit * record.Unit / addr.PageSize}] = true
		}
	}
	const heldBack = 2 * 2 * 125 // of two counters, by two CPUs, in pages
	got, err := k.Unsaved()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d pages unsaved, at least %d", got/addr.PageSize, len(dirty))
	if int(got/addr.PageSize) < len(dirty)-heldBack || got == 0 || got > 5<<30 {
		t.Errorf("%d pages are unsaved by the kernel's count, and %d by the guest's truth", got/addr.PageSize, len(dirty))
	}
}

// checkModule checks that a module's structure is found, with a member of a type of the image.
func checkModule(t *testing.T, k *kernel.Kernel) {
	t.Helper()
	if _, err := k.Module("absent"); !errors.Is(err, kernel.ErrNotFound) {
		t.Errorf("absent module: %v", err)
	}
	types, err := k.Module("virtio_blk")
	if strings.HasPrefix(k.Release, "5.10.") { // before 5.11 modules have no types
		if !errors.Is(err, kernel.ErrNotFound) {
			t.Errorf("types of virtio_blk: %v", err)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	l := types.Layout("virtio_blk")
	// The second name is for PREEMPT_RT (include/linux/mutex_types.h).
	if f := l.First([]string{"vdev_mutex.owner", "vdev_mutex.rtmutex.owner"}, 8); l.Err() != nil || !f.Present() {
		t.Errorf("virtio_blk.vdev_mutex.owner: %v, %v", f, l.Err())
	}
}
