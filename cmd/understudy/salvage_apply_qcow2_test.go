package main

import (
	"os"
	"path/filepath"
	"testing"

	"understudy.dev/understudy/internal/lab/fixture"
)

// asQcow2 makes a qcow2 image of a raw one, beside it, and removes that.
func asQcow2(t *testing.T, image string) (path string) {
	t.Helper()
	path = image + ".qcow2"
	checked(t, "qemu-img", "convert", "-O", "qcow2", image, path)
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
	return path
}

// overlayOn makes a qcow2 image on another one, in a directory of its own.
func overlayOn(t *testing.T, base string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "overlay.qcow2")
	checked(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, path)
	return path
}

// asRaw makes a raw image of a qcow2 image that is sound.
func asRaw(t *testing.T, image string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "raw.img")
	checked(t, "qemu-img", "check", "-q", image)
	checked(t, "qemu-img", "convert", "-O", "raw", image, path)
	return path
}

// TestApplyQcow2 tests file systems in qcow2 images: one that needs no guest, in an image with a backing
// file, and one that a guest works on, in a logical volume in two pieces.
func TestApplyQcow2(t *testing.T) {
	together(t)
	for _, of := range []struct {
		fs   string
		spec fixture.Spec
	}{{"ext4", fixture.Basic}, {"xfs", fixture.Everything(fixture.Default)}} {
		t.Run(of.fs, func(t *testing.T) {
			b := newBench(t, of.spec, of.fs)
			plain := b.disk.Image
			if of.fs == "xfs" {
				b.disk.Image = inVolume(t, plain)
				b.args = append(b.args, "--lvm", volumeName)
			}
			b.disk.Image = asQcow2(t, b.disk.Image)
			before := sumOf(t, b.disk.Image)
			b.apply("--dry-run")
			if sumOf(t, b.disk.Image) != before {
				t.Error("a dry run has changed the image")
			}
			b.tidy()
			if base := b.disk.Image; of.fs == "ext4" {
				b.disk.Image = overlayOn(t, base)
				b.fails("its backing file is said to be " + base)
				b.args = append(b.args, "--backing", base)
				defer func() {
					if sumOf(t, base) != before {
						t.Error("the backing file has changed")
					}
				}()
			}
			r := b.apply()
			b.tidy()
			b.disk.Image, b.args = asRaw(t, b.disk.Image), nil
			if of.fs == "xfs" {
				outOfVolume(t, b.disk.Image, volumeName, plain)
				b.disk.Image = plain
			}
			b.complete(r)
		})
	}
}
