package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/hold"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/takeover"
)

// TestBrokenOffXFS interrupts a takeover of XFS where the understudy may have mounted it and written
// some of the files, or all: recover brings the rest, and creates nothing twice.
func TestBrokenOffXFS(t *testing.T) {
	for _, point := range []takeover.Progress{takeover.Fenced, takeover.HandedOver, takeover.Applied} {
		t.Run(string(point), func(t *testing.T) {
			if point != takeover.Applied { // where the understudy has written no record to the log since its mount
				tier.Full(t, "XFS, killed when it is "+string(point))
			}
			s := stand(t, plainDisk, "  - {name: data, image: data.img, type: xfs, mount: /srv}\n", "256MiB", "384MiB")
			dir := filepath.Dir(s.file)
			mkfsOn(t, filepath.Join(dir, "data.img"), 512<<20, "mkfs.xfs", "-qf")
			_, modules, err := dirs.Kernel("")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := understudy(t, "initramfs", "-o", filepath.Join(dir, "guest.cpio"), "--modules", modules, "--fs", "xfs"); err != nil {
				t.Fatal(err)
			}
			var want string
			s.brokenOff(point, "both", func() {
				s.settings("left", hold.XFS)
				s.did("left", "/srv", saved)
				s.did("left", "/srv", work)
				want = s.list("left", "/srv")
			})
			s.recover()
			checked(t, "xfs_repair", "-n", "-f", filepath.Join(dir, "data.img"))
			s.up()
			got := s.list("left", "/srv")
			if got != want {
				t.Errorf("/srv is\n%s\nand was\n%s", got, want)
			}
			if strings.Contains(got, "displaced") || strings.Contains(got, ".understudy") {
				t.Error("something was made twice")
			}
			if _, err := understudy(t, "down"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestBrokenOffUnder interrupts a takeover whose disks have layers under their file systems:
// several nested ones, and a logical volume, to each of which recover has to bring the rest; and a mirror, which
// only a guest can see through: recover says so, removes nothing, and brings everything to the
// device that is named.
func TestBrokenOffUnder(t *testing.T) {
	for _, u := range unders {
		if u.name != "nested" && u.name != "lvm" && u.name != "md" {
			continue
		}
		for _, point := range []takeover.Progress{takeover.Fenced, takeover.HandedOver, takeover.Applied} {
			t.Run(u.name+" "+string(point), func(t *testing.T) {
				tier.Full(t, "killed when a disk is "+string(point))
				s, dir := u.stand(t)
				var want map[string]string
				s.brokenOff(point, "both", func() { want = u.works(s) })
				if u.name == "md" {
					s.recoverMirror(filepath.Join(dir, "data.img"), filepath.Join(dir, "other.img"))
				} else {
					s.recover()
				}
				u.check(t, dir)
				s.up()
				for _, d := range u.dirs {
					if got := s.list("left", d); got != want[d] {
						t.Errorf("%s is\n%s\nand was\n%s", d, got, want[d])
					}
				}
				if _, err := understudy(t, "down"); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// recoverMirror does what recover says about a file system on a mirror, whose data is a file here.
func (s *standing) recoverMirror(images ...string) {
	s.t.Helper()
	_, err := understudy(s.t, "recover", "test")
	if err == nil || !strings.Contains(err.Error(), "understudy recover --disk data=DEVICE") {
		s.t.Fatalf("without the mirror: %v", err)
	}
	f, err := os.Open(images[0])
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		s.t.Fatal(err)
	}
	m, err := disk.Array(f, st.Size())
	if err != nil || m.Off%(1<<20) != 0 || m.Len%(1<<20) != 0 {
		s.t.Fatalf("%+v, %v", m, err)
	}
	array := taken(s.t, images[0], m.Off, m.Len)
	if _, err := understudy(s.t, "recover", "test", "--disk", "data="+array); err != nil {
		s.t.Fatal(err)
	}
	checked(s.t, "e2fsck", "-fn", array)
	for _, image := range images {
		checked(s.t, "dd", "if="+array, "of="+image, "bs=1M", fmt.Sprintf("seek=%d", m.Off>>20), "conv=notrunc")
	}
	if _, err := os.Stat(dirs.Run("test")); !errors.Is(err, os.ErrNotExist) {
		s.t.Errorf("the run directory is still there: %v", err)
	}
}
