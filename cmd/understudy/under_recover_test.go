package main

import (
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/hold"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/takeover"
)

// TestBrokenOffXFS breaks a takeover of XFS off where the understudy may have mounted it and written
// some of the files, or all: recover brings the rest, and makes nothing twice.
func TestBrokenOffXFS(t *testing.T) {
	for _, point := range []takeover.Progress{takeover.Fenced, takeover.HandedOver, takeover.Applied} {
		t.Run(string(point), func(t *testing.T) {
			tier.Full(t, "XFS, killed when it is "+string(point))
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
