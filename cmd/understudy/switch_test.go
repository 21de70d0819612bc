package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/dirs"
)

// TestSwitch checks that the understudy takes over in good order, and back. A kernel that
// does not boot changes nothing, nor does a busy disk.
func TestSwitch(t *testing.T) {
	s := stand(t, marker, again)
	s.up()
	s.wrote("left", 1)
	out, err := understudy(t, "switch")
	if err != nil || !strings.Contains(out, "switch") {
		t.Fatalf("switch: %v", err)
	}
	if st := s.state("protected"); st.Active != "right" || st.Understudy != "left" || st.Takeovers != 0 {
		t.Errorf("status after a switch: %+v", st)
	}
	s.wrote("right", 2)
	files := 2
	if tier.IsFull() {
		files = 3
		s.refusedSwitches()
	}
	if _, err := understudy(t, "down"); err != nil {
		t.Fatal(err)
	}
	s.sound()
	s.exact(files)
}

// refusedSwitches checks that a busy disk, and a file that is not a kernel, leave everything as it is.
func (s *standing) refusedSwitches() {
	t := s.t
	s.shell("right", "cd /srv && sleep 100000 &")
	if _, err := understudy(t, "switch"); err == nil || !strings.Contains(err.Error(), "stays where it is") || !strings.Contains(err.Error(), "in use by") {
		t.Errorf("switch of a busy pair: %v", err)
	}
	s.shell("right", "kill %1; while [ ! -e /srv/done-3 ]; do sleep 1; done")

	bad := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(bad, []byte("no kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := understudy(t, "switch", "--kernel", bad); err == nil || !strings.Contains(err.Error(), "does not come up with "+bad) {
		t.Errorf("switch to no kernel: %v", err)
	}
	if st := s.state("protected"); st.Active != "right" || st.Understudy != "left" {
		t.Errorf("status after a switch to no kernel: %+v", st)
	}
}

// TestSwitchKernel checks that a pair can get another kernel without a reboot that its clients see.
func TestSwitchKernel(t *testing.T) {
	for _, name := range []string{"6.1-generic", "6.12-cloud"} {
		t.Run(name, func(t *testing.T) {
			tier.Full(t, "a switch to kernel "+name)
			testSwitchKernel(t, fixture.NeedKernel(t, name))
		})
	}
}

func testSwitchKernel(t *testing.T, dir string) {
	kernel, modules, err := dirs.Kernel(dir)
	if err != nil {
		t.Fatal(err)
	}
	release := filepath.Base(modules)
	s := stand(t, marker, again)
	image := filepath.Join(t.TempDir(), "guest.cpio")
	if _, err := understudy(t, "initramfs", "-o", image, "--modules", modules); err != nil {
		t.Fatal(err)
	}
	s.up()
	s.wrote("left", 1)
	if _, err := understudy(t, "switch", "--kernel", kernel, "--initramfs", image); err != nil {
		t.Fatal(err)
	}
	if st := s.state("protected"); st.Active != "right" || st.Kernel != release {
		t.Errorf("status after a switch: %+v", st)
	}
	s.wrote("right", 2)
	if _, err := understudy(t, "crash"); err != nil {
		t.Fatal(err)
	}
	if st := awaitTakeover(t); st.Active != "left" || st.Kernel != release {
		t.Errorf("status after a takeover: %+v", st)
	}
	s.wrote("left", 3)
	if _, err := understudy(t, "down"); err != nil {
		t.Fatal(err)
	}
	s.sound()
	s.exact(3)
}
