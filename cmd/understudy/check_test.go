package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/tier"
)

// installQEMU installs in place of QEMU a program that lists these devices (-device help).
func installQEMU(t *testing.T, devices ...string) {
	t.Helper()
	dir := t.TempDir()
	script := "#!/bin/sh\n"
	for _, d := range devices {
		script += fmt.Sprintf("echo 'name \"%s\", bus PCI'\n", d)
	}
	if err := os.WriteFile(filepath.Join(dir, "qemu-system-x86_64"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// qemuDevices are the devices that a pair needs.
var qemuDevices = []string{"ivshmem-plain", "pvpanic", "pvpanic-pci", "virtio-blk-pci", "virtio-net-pci", "virtio-serial-pci", "virtserialport"}

// TestCheck checks that check reports what up would refuse, and changes nothing.
func TestCheck(t *testing.T) {
	if os.Getuid() != 0 {
		tier.Lacks(t, "not root: the run directory is root's")
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		tier.Lacks(t, err)
	}
	t.Setenv("UNDERSTUDY_RUN", t.TempDir())
	installQEMU(t, qemuDevices...)
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("k", []byte("a kernel"))
	image, empty, xfs := write("d.img", nil), make([]byte, 1<<20), make([]byte, 1<<20)
	if err := os.Truncate(image, 8<<20); err != nil {
		t.Fatal(err)
	}
	mkfs(t, image)
	copy(xfs, "XFSB")
	write("empty.img", empty)
	write("xfs.img", xfs)
	good := onTheseCPUs(t, `name: checked
partitions:
  left: {cpus: "0", memory: 128MiB, kernel: k, initramfs: k}
  right: {cpus: "0", memory: 128MiB, kernel: k, initramfs: k}
disks: [{name: d, image: d.img, mount: /srv}]
`)
	tests := []struct {
		name, old, new, want, text string // want is reported for the whole check, text if only the text is checked
	}{
		{"good", "", "", "good", "good"},
		{"misspelt", "mount:", "muont:", `did you mean "mount"?`, `did you mean "mount"?`},
		{"no kernel", "kernel: k", "kernel: none", "no such file", "good"},
		{"no bridge", "disks:", "nics: [{name: n, mac: '52:54:00:00:00:02', address: 10.0.0.2/24, bridge: no-bridge}]\ndisks:", "ip link add no-bridge type bridge", "good"},
		{"empty disk", "d.img", "empty.img", "mkfs.ext4", "good"},
		{"XFS", "d.img", "xfs.img", "say type: xfs", "good"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := write("pair.yaml", []byte(strings.Replace(good, tt.old, tt.new, 1)))
			before, err := os.ReadFile(image)
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			for textOnly, want := range map[bool]string{false: tt.want, true: tt.text} {
				var out strings.Builder
				said := ""
				if err := check(&out, file, textOnly); err != nil {
					said = err.Error()
				} else {
					said = out.String()
				}
				if !strings.Contains(said, want) || strings.Contains(said, "good") != (want == "good") {
					t.Errorf("with --text=%v it says %q, without %q", textOnly, said, want)
				}
			}
			if after, err := os.ReadFile(image); err != nil || !bytes.Equal(before, after) {
				t.Errorf("the image has changed (%v)", err)
			}
			if st, err := os.Stat(image); err != nil || st.ModTime().After(began) {
				t.Errorf("the image was written (%v)", err)
			}
		})
	}
}

// TestCheckQEMU checks that check and up report a QEMU that lacks what a pair needs, and that a check of the
// text alone does not.
func TestCheckQEMU(t *testing.T) {
	t.Setenv("UNDERSTUDY_RUN", t.TempDir())
	installQEMU(t, qemuDevices[1:]...)
	dir := t.TempDir()
	file := filepath.Join(dir, "pair.yaml")
	text := onTheseCPUs(t, `name: checked
partitions:
  left: {cpus: "0", memory: 128MiB, kernel: k, initramfs: k}
  right: {cpus: "0", memory: 128MiB, kernel: k, initramfs: k}
`)
	if err := errors.Join(os.WriteFile(file, []byte(text), 0o600), os.WriteFile(filepath.Join(dir, "k"), []byte("a kernel"), 0o600)); err != nil {
		t.Fatal(err)
	}
	_, _, err := loadPair(file, io.Discard)
	for by, err := range map[string]error{"check": check(io.Discard, file, false), "up": err} {
		if err == nil || !strings.Contains(err.Error(), "built without ivshmem-plain") {
			t.Errorf("%s: %v", by, err)
		}
	}
	if err := check(io.Discard, file, true); err != nil {
		t.Errorf("check --text: %v", err)
	}
}

// TestCheckRoom checks that a pair is refused if the run directory's file system has no room for its
// memory. What an earlier pair has left there, and up would remove, counts as room.
func TestCheckRoom(t *testing.T) {
	run := t.TempDir()
	if err := unix.Mount("none", run, "tmpfs", 0, "size=100m"); err != nil {
		tier.Lacks(t, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(run, 0); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("UNDERSTUDY_RUN", run)
	installQEMU(t, qemuDevices...)
	dir := t.TempDir()
	file := filepath.Join(dir, "pair.yaml")
	text := onTheseCPUs(t, `name: checked
partitions:
  left: {cpus: "0", memory: 128MiB, kernel: k, initramfs: k}
  right: {cpus: "0", memory: 128MiB, kernel: k, initramfs: k}
`)
	if err := errors.Join(os.WriteFile(file, []byte(text), 0o600), os.WriteFile(filepath.Join(dir, "k"), []byte("a kernel"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := check(io.Discard, file, false); err == nil || !strings.Contains(err.Error(), run+" has room for 100 MiB, and the pair needs 288 MiB more") {
		t.Errorf("with 100 MiB: %v", err)
	}
	if err := unix.Mount("none", run, "tmpfs", unix.MS_REMOUNT, "size=300m"); err != nil {
		t.Fatal(err)
	}
	if err := check(io.Discard, file, false); err != nil {
		t.Errorf("with 300 MiB: %v", err)
	}
	left := filepath.Join(run, "understudy-checked")
	if err := errors.Join(os.Mkdir(left, 0o700), os.WriteFile(filepath.Join(left, "left.ram"), make([]byte, 50<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := check(io.Discard, file, false); err != nil {
		t.Errorf("with 50 MiB that up would remove: %v", err)
	}
}

// TestAlarm checks that the exit status says whether somebody has to look.
func TestAlarm(t *testing.T) {
	for _, tt := range []struct {
		st   status
		want int
	}{
		{status{State: "protected"}, 0},
		{status{State: "protected", Error: "it was tried again"}, 0},
		{status{State: "protected", Troubles: []string{"a service keeps ending"}}, exitUnprotected},
		{status{State: "protected", Unread: "its kernel is not found"}, exitUnprotected},
		{status{State: "unprotected"}, exitUnprotected},
		{status{State: "taking over"}, exitUnprotected},
		{status{State: "switching"}, exitUnprotected},
		{status{State: "protected", Held: "frozen"}, exitNoService},
		{status{State: "failed"}, exitNoService},
	} {
		got := 0
		if err := tt.st.alarm(); err != nil {
			got = exitCode(err)
		}
		if got != tt.want {
			t.Errorf("%+v: %d, not %d", tt.st, got, tt.want)
		}
	}
}
