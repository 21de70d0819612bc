package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/scene"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/takeover/offline"
)

// host runs a program of the host, which must succeed, and returns what it prints.
func host(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// mount mounts the disk on this machine, as an operator would, and returns where it is
// mounted and how to unmount it.
func (b *bench) mount(options string) (dir string, end func()) {
	b.t.Helper()
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil || !bytes.Contains(known, []byte("\t"+b.disk.Type+"\n")) {
		b.t.Skipf("this machine's kernel has no %s: %v", b.disk.Type, err)
	}
	loop := host(b.t, "losetup", "--find", "--show", b.disk.Image)
	dir = b.t.TempDir()
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		host(b.t, "umount", dir)
		host(b.t, "losetup", "-d", loop)
	}
	b.t.Cleanup(end)
	host(b.t, "mount", "-t", b.disk.Type, "-o", options, loop, dir)
	return dir, end
}

// TestApplyMounted tests file systems that are mounted on this machine.
func TestApplyMounted(t *testing.T) {
	together(t)
	for name, options := range map[string]string{"xfs": "noatime", "btrfs": "noatime,subvolid=5"} {
		t.Run(name, func(t *testing.T) {
			if name == "xfs" {
				tier.Full(t, "a mounted XFS")
			}
			b := newBench(t, fixture.Everything(fixture.Default), name)
			dir, end := b.mount(options)
			mine := func(args ...string) offline.Report {
				t.Helper()
				out, err := understudy(t, append([]string{"salvage", "apply", b.image.RAM, "--mount", dir, "--json"}, args...)...)
				var r offline.Report
				if bad := json.Unmarshal([]byte(out), &r); bad != nil {
					t.Fatalf("%v: %v", err, bad)
				}
				return r
			}
			before := host(t, "find", dir)
			if dry := mine("--dry-run"); dry.Plan == nil || len(dry.Plan.Files) < 150 || host(t, "find", dir) != before {
				t.Errorf("planned %+v", dry.Plan)
			}
			r := mine()
			if r.Applied == nil || r.Applied.Files < 150 {
				t.Errorf("applied %+v", r.Applied)
			}
			end()
			b.complete(r)
		})
	}
}

// TestApplyPartial checks that what is known of a file is written, and that the file is reported as incomplete.
func TestApplyPartial(t *testing.T) {
	together(t)
	const name, size = "shrunk", 100_001 // it was truncated, and what is left of it is on the disk only, compressed
	b := sceneBench(t, scene.Spec{
		Modules: []string{"btrfs"},
		Disks:   []scene.Disk{{Size: 512 << 20, Mkfs: []string{"mkfs.btrfs", "-q"}}},
		Script: fmt.Sprintf(`
mount -t btrfs -o compress-force=zlib,commit=600 /dev/vda /mnt
yes | head -c 200000 >/mnt/%[1]s
sync
echo 3 >/proc/sys/vm/drop_caches
truncate -s %[2]d /mnt/%[1]s
crash
`, name, size),
	})
	b.disk.Type = "btrfs"
	dir, end := b.mount("noatime,subvolid=5")
	out, err := understudy(t, "salvage", "apply", b.image.RAM, "--mount", dir, "--partial")
	if err == nil || !strings.HasPrefix(err.Error(), "exit status 3") || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "the rest is written") {
		t.Errorf("%v: %s", err, out)
	}
	got, err := os.ReadFile(filepath.Join(dir, name))
	if want := strings.Repeat("y\n", size/2+1)[:size]; err != nil || string(got) != want {
		t.Errorf("%s: %d bytes, %v", name, len(got), err)
	}
	end()
}

// TestApplyMountedLater checks that what was changed after the crash stays.
func TestApplyMountedLater(t *testing.T) {
	together(t)
	b := newBench(t, fixture.Everything(fixture.Default), "xfs")
	dir, end := b.mount("noatime")
	const text = "written after the crash"
	for _, name := range []string{"old/mid", "old/f0"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := understudy(t, "salvage", "apply", b.image.RAM, "--mount", dir)
	if err == nil || strings.Count(err.Error(), "it was changed after the crash") != 2 || !strings.HasPrefix(err.Error(), "exit status 3") {
		t.Errorf("%v: %s", err, out)
	}
	for _, name := range []string{"old/mid", "old/f0"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != text {
			t.Errorf("%s has %d bytes now: %v", name, len(got), err)
		}
	}
	end()
}

// TestApplyMountedRefuses tests mounts that must not be written to.
func TestApplyMountedRefuses(t *testing.T) {
	together(t)
	b := newBench(t, fixture.Everything(fixture.Default), "ext4")
	fails := func(want, dir string) {
		t.Helper()
		out, err := understudy(t, "salvage", "apply", b.image.RAM, "--mount", dir)
		if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "exit status 1") {
			t.Errorf("%v, want %q: %s", err, want, out)
		}
	}
	fails("nothing is mounted on", t.TempDir())
	dir, end := b.mount("noatime")
	fails("must be finished before it is mounted", dir)
	end()
	dir, end = b.mount("ro")
	fails("read-only", dir)
	end()

	// This disk is of another death of the same kernel.
	b = newBench(t, fixture.Everything(fixture.Default), "xfs")
	mine := b.image
	b.image = fixture.Get(t, fixture.Basic)
	dir, end = b.mount("noatime")
	fails("and not that", dir)
	end()
	b.image = mine
}
