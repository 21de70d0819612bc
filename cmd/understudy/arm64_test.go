package main

import (
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/fixture"
)

// TestARM64 reads crashes of kernels for arm64: as they lie in a RAM file, as an ELF core and
// as a kdump-compressed file.
func TestARM64(t *testing.T) {
	for _, name := range fixture.ARM64Kernels {
		t.Run(name, func(t *testing.T) {
			image := crashImage(t, fixture.ARM64(name))
			for _, memory := range []string{image.RAM, image.Dump, image.Beside(fixture.QEMUKdump)} {
				got := command(t, "inspect", memory)
				if got.err != nil || !strings.Contains(got.out, image.Release) || !strings.Contains(got.out, "sysrq triggered crash") ||
					!strings.Contains(got.out, "aarch64") || !strings.Contains(got.out, "/mnt/ext4-1k") {
					t.Errorf("%v: %s", got.err, got.out)
				}
				checkExtract(t, image, memory)
			}
		})
	}
}

// TestApplyARM64 applies the memory of such kernels to their disks: by placement, without a
// guest, and, where there is no journal or it is not finished, by a guest of x86-64.
func TestApplyARM64(t *testing.T) {
	for _, name := range fixture.ARM64Kernels {
		for _, fs := range []string{"ext4", "ext4-1k", "ext3", "ext2", "xfs"} {
			t.Run(name+"/"+fs, func(t *testing.T) {
				b := newBench(t, fixture.ARM64(name), fs)
				r := b.apply()
				b.tidy()
				b.complete(r)
				if strings.HasPrefix(fs, "ext") && fs != "ext2" {
					b.again(r)
				}
			})
		}
	}
}
