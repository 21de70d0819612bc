package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/lvmdisk"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/disk"
)

// volumeName is the logical volume that inVolume makes.
const volumeName = "vg0/root-a"

// inVolume puts what is in an image into a logical volume, in two pieces, of a new image, and removes the first one. Another
// volume lies between the pieces.
func inVolume(t *testing.T, image string) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "volumes.img")
	st, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	all := int((st.Size() + lvmdisk.Extent - 1) / lvmdisk.Extent)
	first := all / 3
	err = lvmdisk.Make(path, int64(all)+8,
		lvmdisk.Volume("root-a", lvmdisk.Visible, lvmdisk.Linear(all-first+8, first), lvmdisk.Linear(2, all-first)),
		lvmdisk.Volume("swap", lvmdisk.Visible, lvmdisk.Linear(all-first+2, 6)), lvmdisk.Volume("boot", lvmdisk.Visible, lvmdisk.Linear(0, 2)))
	if err != nil {
		t.Fatal(err)
	}
	onVolume(t, path, volumeName, func(v device.Section) {
		if len(v.At) != 2 || v.Len() != int64(all)*lvmdisk.Extent {
			t.Fatalf("the volume is at %+v", v.At)
		}
		from, err := os.Open(image)
		if err != nil {
			t.Fatal(err)
		}
		defer from.Close()
		copyData(t, v, from)
	})
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
	return path
}

// outOfVolume puts what is in a volume into an image.
func outOfVolume(t *testing.T, path, volume, image string) {
	t.Helper()
	to, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	onVolume(t, path, volume, func(v device.Section) {
		if err := to.Truncate(v.Len()); err != nil {
			t.Fatal(err)
		}
		copyData(t, to, io.NewSectionReader(v, 0, v.Len()))
	})
}

func onVolume(t *testing.T, path, volume string, do func(device.Section)) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	a, err := disk.At(f, size, disk.Where{Volume: volume})
	if err != nil {
		t.Fatal(err)
	}
	do(device.On(f, a))
}

// copyData copies all but zeros.
func copyData(t *testing.T, to io.WriterAt, from io.Reader) {
	t.Helper()
	b, zeros := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); ; {
		n, err := io.ReadFull(from, b)
		if n > 0 && !bytes.Equal(b[:n], zeros[:n]) {
			if _, err := to.WriteAt(b[:n], at); err != nil {
				t.Fatal(err)
			}
		}
		if at += int64(n); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// around is a digest of all of an image but its volume.
func around(t *testing.T, path string) [32]byte {
	t.Helper()
	copied := filepath.Join(t.TempDir(), "around.img")
	copyDisk(t, path, copied)
	onVolume(t, copied, volumeName, func(v device.Section) {
		zeros := make([]byte, lvmdisk.Extent)
		for at := int64(0); at < v.Len(); at += lvmdisk.Extent {
			if _, err := v.WriteAt(zeros, at); err != nil {
				t.Fatal(err)
			}
		}
	})
	return sumOf(t, copied)
}

// TestApplyVolume tests file systems in a logical volume that is in two pieces: one that needs no guest, and one that a guest
// works on.
func TestApplyVolume(t *testing.T) {
	together(t)
	for _, of := range []struct {
		fs   string
		spec fixture.Spec
	}{{"ext4", fixture.Basic}, {"xfs", fixture.Everything(fixture.Default)}} {
		t.Run(of.fs, func(t *testing.T) {
			if of.fs == "xfs" {
				tier.Full(t, "XFS in a raw image's logical volume") // TestApplyQcow2 has it in a qcow2 image's
			}
			b := newBench(t, of.spec, of.fs)
			plain := b.disk.Image
			b.disk.Image = inVolume(t, plain)
			beside, whole := around(t, b.disk.Image), sumOf(t, b.disk.Image)
			b.fails(": --disk " + b.disk.Image + " --lvm vg0/root-a")
			b.fails("no partition 2", "--partition", "2")
			b.fails("no logical volume vg0/root; there is vg0/boot, vg0/root-a, vg0/swap", "--lvm", "vg0/root")
			b.args = append(b.args, "--lvm", volumeName)
			b.apply("--dry-run")
			if sumOf(t, b.disk.Image) != whole {
				t.Error("a dry run has changed the disk")
			}
			b.tidy()
			r := b.apply()
			b.tidy()
			if r.Volume != volumeName || r.Part != 0 {
				t.Errorf("the report says %+v", r.Where)
			}
			if around(t, b.disk.Image) != beside {
				t.Error("the disk has changed beside the volume")
			}
			outOfVolume(t, b.disk.Image, volumeName, plain)
			b.disk.Image, b.args = plain, nil
			b.complete(r)
		})
	}
}
