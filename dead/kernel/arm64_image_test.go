package kernel_test

import (
	"strings"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/internal/lab/fixture"
)

// TestFindARM64 finds kernels for arm64 in RAM files and cores: with addresses of 48 and of
// 52 bits, and with only functions in the symbol table (6.1).
func TestFindARM64(t *testing.T) {
	for _, name := range fixture.ARM64Kernels {
		t.Run(name, func(t *testing.T) {
			image := fixture.Get(t, fixture.ARM64(name))
			for _, path := range []string{image.RAM, image.Dump} {
				mem, err := ram.OpenFile(path)
				if err != nil {
					t.Fatal(err)
				}
				defer mem.Close()
				k, err := kernel.Find(mem)
				if err != nil {
					t.Fatal(err)
				}
				checkARM64(t, k, image)
			}
		})
	}
}

func checkARM64(t *testing.T, k *kernel.Kernel, image *fixture.Image) {
	t.Logf("%s, %d levels, offset %#x", k.Banner, k.PagingLevels(), k.Offset)
	if k.Release != image.Release || !strings.HasPrefix(k.Banner, "Linux version "+image.Release+" ") || k.Architecture() != "aarch64" {
		t.Errorf("found %q, %q for %s instead of %q", k.Release, k.Banner, k.Architecture(), image.Release)
	}
	levels, size := 5, addr.Pages4K
	switch {
	case strings.HasSuffix(k.Release, "-16k"):
		levels, size = 4, addr.Pages16K
	case strings.HasPrefix(k.Release, "6.1."):
		levels = 4
	}
	if k.PagingLevels() != levels || k.Pages() != size || k.Offset == 0 {
		t.Errorf("%d levels, moved by %#x", k.PagingLevels(), k.Offset)
	}
	if err := k.StillThere(); err != nil {
		t.Error(err)
	}
	if strings.HasPrefix(k.Release, "6.1.") {
		if why, err := k.PanicMessage(); why != "sysrq triggered crash" || err != nil {
			t.Errorf("panic message %q, %v", why, err)
		}
	} else {
		checkPanic(t, k)
	}
	checkUnsaved(t, k, image)
	checkModule(t, k)
}
