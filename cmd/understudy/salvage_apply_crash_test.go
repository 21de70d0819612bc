package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/fence"
)

// workLimit is how long the guest's work, or the commit of it, may take to begin.
const workLimit = 15 * time.Minute

// start runs the command in the background.
func (b *bench) start(env ...string) *exec.Cmd {
	b.t.Helper()
	cmd := exec.Command(binary, append([]string{"salvage", "apply", b.image.RAM, "--disk", b.disk.Image}, b.args...)...)
	cmd.Env = append(os.Environ(), env...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		cmd.Process.Kill() // it has ended, if all went well
		cmd.Wait()
		if b.t.Failed() {
			b.t.Logf("it said: %s", &said)
		}
	})
	return cmd
}

func (b *bench) work(name string) string { return filepath.Join(b.disk.Image+".understudy", name) }

// filling reports whether the guest is at work: the overlay has grown.
func (b *bench) filling() bool {
	st, err := os.Stat(b.work("overlay.qcow2"))
	return err == nil && st.Size() > 1<<20
}

// step returns the step in the record beside the overlay.
func (b *bench) step() string {
	var r struct{ Step string }
	raw, err := os.ReadFile(b.work("record.json"))
	if err != nil || json.Unmarshal(raw, &r) != nil {
		return ""
	}
	return r.Step
}

// changedSince reports whether the disk was written to after a file beside the overlay.
func (b *bench) changedSince(name string) bool {
	disk, err1 := os.Stat(b.disk.Image)
	file, err2 := os.Stat(b.work(name))
	return err1 == nil && err2 == nil && disk.ModTime().After(file.ModTime())
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
}

// TestApplyKilled kills the command while its guest works.
func TestApplyKilled(t *testing.T) {
	together(t)
	tier.Full(t, "salvage apply killed before its commit")
	b := newBench(t, fixture.Basic, "ext4").inGuest()
	cmd := b.start()
	await(t, "work of the guest", workLimit, b.filling)
	kill(t, cmd)
	if sumOf(t, b.disk.Image) != sumOf(t, b.crash.Image) {
		t.Error("the disk has changed")
	}
	if b.step() != "apply" {
		t.Errorf("the record says %q", b.step())
	}
	b.complete(b.apply()) // as if nothing had happened
	b.tidy()
}

// TestApplyGuestKilled kills the guest itself.
func TestApplyGuestKilled(t *testing.T) {
	together(t)
	tier.Full(t, "salvage apply whose guest is killed")
	b := newBench(t, fixture.Basic, "ext4").inGuest()
	cmd := b.start()
	await(t, "work of the guest", workLimit, b.filling)
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	killed := 0
	for _, l := range lines {
		line, err := os.ReadFile(l)
		if err != nil || !bytes.HasPrefix(line, []byte("qemu-system")) || !bytes.Contains(line, []byte(b.disk.Image)) {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(l, "/")[2])
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		killed++
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 1 || killed != 1 {
		t.Errorf("it ended with %v; %d guests were killed", err, killed)
	}
	b.untouched()
}

// slowCommit makes commits so slow that one that was begun does not end within the test. It
// returns the environment variable for that.
func slowCommit(t *testing.T) string {
	t.Helper()
	tool, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Skipf("%v: scripts/setup.sh installs it", err)
	}
	dir := t.TempDir()
	script := "#!/bin/sh\nverb=$1\nshift\n[ $verb = commit ] && set -- -r 64K \"$@\"\nexec " + tool + " $verb \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, "qemu-img"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return "PATH=" + dir + ":" + os.Getenv("PATH")
}

// TestApplyCommitKilled kills the command in the middle of the commit.
func TestApplyCommitKilled(t *testing.T) {
	together(t)
	other := crashImage(t, fixture.Writeback)
	b := newBench(t, fixture.Basic, "ext4").inGuest()
	cmd := b.start(slowCommit(t))
	await(t, "commit", workLimit, func() bool { return b.step() == "veiled" && b.changedSince("record.json") })
	kill(t, cmd)
	await(t, "end of the commit", workLimit, func() bool { return fence.Free(b.disk.Image) == nil })
	half := sumOf(t, b.disk.Image)
	if half == sumOf(t, b.crash.Image) || b.step() != "veiled" {
		t.Fatalf("nothing was committed yet; the record says %q", b.step())
	}
	b.fails("a commit to it was broken off", "--dry-run")

	// The disk cannot be taken for a file system meanwhile.
	if out, err := exec.Command("e2fsck", "-fn", b.disk.Image).CombinedOutput(); err == nil || !bytes.Contains(out, []byte("Bad magic")) {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
	b.fails("not in "+b.elsewhere()+"/disk.img", "--work", b.elsewhere())

	mine := b.image
	b.image = other // which did not have this disk mounted
	b.fails("the dead kernel had")
	b.image = mine

	// Somebody writes another superblock.
	flip := func() {
		f, err := os.OpenFile(b.disk.Image, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var mounts [1]byte
		if _, err := f.ReadAt(mounts[:], 1024+0x34); err != nil {
			t.Fatal(err)
		}
		mounts[0] ^= 0x40
		if _, err := f.WriteAt(mounts[:], 1024+0x34); err != nil {
			t.Fatal(err)
		}
	}
	flip()
	b.fails("neither the old one nor the new one")
	flip()
	if sumOf(t, b.disk.Image) != half {
		t.Error("what was refused changed the disk")
	}

	copied := b.disk
	copied.Image = filepath.Join(t.TempDir(), filepath.Base(b.disk.Image))
	copyDisk(t, b.disk.Image, copied.Image)
	if err := os.CopyFS(copied.Image+".understudy", os.DirFS(b.disk.Image+".understudy")); err != nil {
		t.Fatal(err)
	}
	r := b.apply()
	if !r.Resumed || r.Plan != nil {
		t.Errorf("resumed: %v, plan %+v", r.Resumed, r.Plan)
	}
	b.tidy()
	r.Refused, r.Complete = nil, true // the interrupted run had refused nothing
	b.complete(r)

	// Finishing does not need the memory.
	finish := []string{"salvage", "apply", "--finish", "--disk", copied.Image}
	out, err := understudy(t, finish...)
	if err != nil || !strings.Contains(out, "the commit that was broken off is finished") || sumOf(t, copied.Image) != sumOf(t, b.disk.Image) {
		t.Errorf("%v: %s; or the disk is another than by the memory", err, out)
	}
	b.disk = copied
	b.tidy()
	if _, err := understudy(t, finish...); err == nil || !strings.Contains(err.Error(), "no commit to it was broken off") {
		t.Errorf("again: %v", err)
	}
}

// TestApplyStale checks what happens if the work of another image is beside the disk.
func TestApplyStale(t *testing.T) {
	needGuests(t) // alone: it removes what its command has left
	tier.Full(t, "what another run has left beside a disk")
	b := newBench(t, fixture.Basic, "ext4").inGuest()
	cmd := b.start()
	await(t, "work of the guest", workLimit, b.filling)
	kill(t, cmd)
	raw, err := os.ReadFile(b.work("record.json"))
	if err != nil {
		t.Fatal(err)
	}
	foreign := bytes.Replace(raw, []byte(`"sum": "`), []byte(`"sum": "0`), 1)
	if err := os.WriteFile(b.work("record.json"), foreign, 0o600); err != nil {
		t.Fatal(err)
	}
	b.fails("unfinished run for another image")
	if err := os.WriteFile(b.work("record.json"), regexp.MustCompile(`"version": \d+`).ReplaceAll(raw, []byte(`"version": 7`)), 0o600); err != nil {
		t.Fatal(err)
	}
	b.fails("version 7")
	if err := os.RemoveAll(b.disk.Image + ".understudy"); err != nil {
		t.Fatal(err)
	}
	b.untouched()
	if err := os.RemoveAll(leftRun(t)); err != nil {
		t.Fatal(err)
	}
}

// leftRun returns the directory that a killed command leaves.
func leftRun(t *testing.T) string {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(os.Getenv("UNDERSTUDY_RUN"), "understudy-apply-*"))
	if err != nil || len(left) != 1 {
		t.Fatalf("left is %v, %v", left, err)
	}
	return left[0]
}

// TestApplyRefuses tests disks that must not be written to.
func TestApplyRefuses(t *testing.T) {
	together(t)
	b := newBench(t, fixture.Basic, "ext4")
	b.fails("no such file", "--disk", filepath.Join(t.TempDir(), "none"))
	b.fails("Name an image file", "--disk", t.TempDir())
	b.fails("no file system that can be written to", "--disk", b.zeros())
	b.fails("had", "--disk", fixture.Get(t, fixture.Writeback).Disks[0].Image)
	b.fails("there are: ", "--fs", "sda")
	b.fails("boot/vmlinuz", "--guest", t.TempDir())

	small, image := t.TempDir(), filepath.Join(t.TempDir(), "small.img")
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	b.fails("it is in memory", "--work", small)
	if err := unix.Unmount(small, 0); err != nil {
		t.Fatal(err)
	}
	checked(t, "mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", image, "1m")
	checked(t, "mount", "-o", "loop", image, small)
	b.fails("no space left", "--work", small)
	if err := unix.Unmount(small, 0); err != nil {
		t.Fatal(err)
	}

	holder := exec.Command("qemu-io", "-f", "raw", "-c", "sleep 600000", b.disk.Image)
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "lock of the disk", workLimit, func() bool { return fence.Free(b.disk.Image) != nil })
	b.fails("still locked by process")
	kill(t, holder)

	loop, err := exec.Command("losetup", "--find", "--show", b.disk.Image).Output()
	if err != nil {
		t.Skipf("losetup: %v: no loop devices here", err)
	}
	device := strings.TrimSpace(string(loop))
	b.fails("attached to " + device)
	b.fails("no directory for the work files beside it", "--disk", device)
	if out, err := exec.Command("losetup", "-d", device).CombinedOutput(); err != nil {
		t.Fatalf("losetup -d: %v: %s", err, out)
	}
	b.untouched()
}

// elsewhere returns a directory that is not beside the disk.
func (b *bench) elsewhere() string { return filepath.Dir(b.image.RAM) }

// zeros makes an empty disk.
func (b *bench) zeros() string {
	b.t.Helper()
	path := filepath.Join(b.t.TempDir(), "zeros")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return path
}
