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
		t.Run(name, func(t *testing.T) { checkInspect(t, crashImage(t, fixture.ARM64(name))) })
	}
	for _, spec := range fixture.ARM64CPUs {
		t.Run(spec.Kernel+" on "+spec.CPU, func(t *testing.T) {
			image := crashImage(t, spec)
			checkInspect(t, image)
			for _, memory := range memories(image) {
				checkExtract(t, image, memory)
			}
		})
	}
}

func memories(image *fixture.Image) []string {
	return []string{image.RAM, image.Dump, image.Beside(fixture.QEMUKdump)}
}

// checkInspect checks that every form of a memory is recognized as of that machine, and lists the same.
func checkInspect(t *testing.T, image *fixture.Image) {
	t.Helper()
	var lists []string
	machine := "aarch64, pages of 4 KiB"
	if strings.HasSuffix(image.Release, "-16k") {
		machine = "aarch64, pages of 16 KiB"
	}
	for _, memory := range memories(image) {
		got := command(t, "inspect", memory)
		for _, want := range []string{image.Release, "sysrq triggered crash", machine, "/mnt/ext4"} {
			if got.err != nil || !strings.Contains(got.out, want) {
				t.Errorf("%s: %v: no %q in %s", memory, got.err, want, got.out)
			}
		}
		list := command(t, "salvage", "list", memory)
		if list.err != nil || !strings.Contains(list.out, "old/mapped") {
			t.Errorf("%s: %v: %s", memory, list.err, list.out)
		}
		lists = append(lists, list.out)
	}
	if lists[0] != lists[1] || lists[0] != lists[2] {
		t.Errorf("not all forms have the same files: %q", lists)
	}
}

// TestApplyARM64 applies the memory of such kernels to their disks: by placement, without a
// guest, or by a guest of x86-64 if there is no journal or the journal is not finished.
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
