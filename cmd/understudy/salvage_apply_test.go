package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/fixture/record"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/offline"
)

// bench is a copy of a crashed guest's disk, alone in a directory.
type bench struct {
	t     *testing.T
	image *fixture.Image
	disk  fixture.Disk // its Image is the copy
	crash fixture.Disk // as the crash left it
	args  []string     // further arguments of the command
}

// inGuest makes a guest do all the work, even what needs none, and names its kernel.
func (b *bench) inGuest() *bench {
	b.args = append(b.args, "--guest", fixture.NeedKernel(b.t, fixture.Default))
	return b
}

func newBench(t *testing.T, spec fixture.Spec, name string) *bench {
	t.Helper()
	needGuests(t)
	image := crashImage(t, spec)
	b := &bench{t: t, image: image, crash: image.Format(name)}
	b.disk = b.crash
	b.disk.Image = filepath.Join(t.TempDir(), "disk.img")
	copyDisk(t, b.crash.Image, b.disk.Image)
	return b
}

func copyDisk(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
}

// apply runs the command, and checks that it ends with a report, and with the exit status that goes with it.
func (b *bench) apply(args ...string) offline.Report {
	b.t.Helper()
	cmd := exec.Command(binary, slices.Concat([]string{"salvage", "apply", b.image.RAM, "--disk", b.disk.Image, "--json"}, b.args, args)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var r offline.Report
	if bad := json.Unmarshal(out.Bytes(), &r); bad != nil {
		b.t.Fatalf("%v: %s", err, &errs)
	}
	var exit *exec.ExitError
	status := 0
	if errors.As(err, &exit) {
		status = exit.ExitCode()
	}
	if want := map[bool]int{true: 0, false: exitRefused}[r.Complete]; status != want {
		b.t.Errorf("exit status %d, complete: %v: %s", status, r.Complete, &errs)
	}
	for n, why := range r.Refused {
		if slices.ContainsFunc(r.Refused[:n], func(other takeover.Refusal) bool { return reflect.DeepEqual(why, other) }) {
			b.t.Errorf("reported twice: %+v", why)
		}
	}
	return r
}

// fails runs the command, and checks that it fails with an error that contains want, and
// with exit status 1.
func (b *bench) fails(want string, args ...string) {
	b.t.Helper()
	out, err := understudy(b.t, slices.Concat([]string{"salvage", "apply", b.image.RAM, "--disk", b.disk.Image}, b.args, args)...)
	if err == nil || !strings.Contains(err.Error(), want) || !strings.HasPrefix(err.Error(), "exit status 1") {
		b.t.Errorf("%v, want %q: %s", err, want, out)
	}
}

// untouched checks that the disk is as the crash left it, and that nothing is beside it.
func (b *bench) untouched() {
	b.t.Helper()
	if sumOf(b.t, b.disk.Image) != sumOf(b.t, b.crash.Image) {
		b.t.Error("the disk has changed")
	}
	b.tidy()
}

func (b *bench) tidy() {
	b.t.Helper()
	entries, err := os.ReadDir(filepath.Dir(b.disk.Image))
	if err != nil || len(entries) != 1 {
		b.t.Errorf("beside the disk is %v, %v", entries, err)
	}
}

func sumOf(t *testing.T, path string) [32]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

// complete checks that the disk has what the guest reported of its files. For the ext
// family that is everything. Where we do not finish the log, what is missing or older must
// have been refused by name, and a deleted file that is back must be reported.
func (b *bench) complete(r offline.Report) {
	b.t.Helper()
	loose := b.disk.Type == "xfs" || b.disk.Type == "btrfs"
	found := make(map[record.Path]record.File)
	for _, f := range fixture.Look(b.t, b.disk) {
		found[f.Path] = f
	}
	refused := make(map[uint64]bool)
	for _, why := range r.Refused {
		refused[why.Inode] = true
	}
	acts, back := make(map[record.Path]string), make(map[uint64]bool)
	if r.Applied != nil {
		for _, a := range r.Applied.Acts {
			back[a.Inode] = back[a.Inode] || a.Kind == wire.ActBack
			acts[record.Path(inventory.TextOf(a.Path, a.PathBase64))] = a.Kind
		}
	}
	right, lost := 0, 0
	for _, want := range b.image.Files(b.disk.Name) {
		got, ok := found[want.Path]
		delete(found, want.Path)
		switch {
		case want.NLink == 0 && ok && !back[want.Ino]:
			b.t.Errorf("%q was deleted, and is back", want.Path)
		case want.NLink == 0:
		case loose && refused[want.Ino]: // it was left as it is
			lost++
		case !ok:
			b.t.Errorf("%q is missing, and nothing is said about it", want.Path)
		default:
			if what := differs(got, want, loose, acts[want.Path] != ""); what != "" {
				b.t.Errorf("%q has %s: %+v, want %+v", want.Path, what, got, want)
				continue
			}
			right++
		}
	}
	for path, f := range found {
		if path != "lost+found" && !(loose && refused[f.Ino]) {
			b.t.Errorf("%q is there, and the guest had no such file", path)
		}
	}
	b.t.Logf("%s: %d names as the guest had them, %d refused", b.disk.Name, right, lost)
	if right < 200 || lost > 2 || !loose && len(r.Refused) > 0 {
		b.t.Errorf("%d names are right, %d were refused: %v", right, lost, r.Refused)
	}
}

// differs says how a file differs from what the guest had. A file that was created again
// has another inode number. Where we do not finish the log, the size of a directory depends
// on all entries that it ever had.
func differs(got, want record.File, loose, again bool) string {
	dir := want.Mode&0o170000 == 0o040000
	switch {
	case got.SHA256 != want.SHA256:
		return "other bytes"
	case got.Size != want.Size && !(loose && dir):
		return "another size"
	case got.Mode != want.Mode || got.UID != want.UID || got.GID != want.GID:
		return "another owner or other permissions"
	case got.NLink != want.NLink || got.Ino != want.Ino && !again:
		return "other links"
	case !got.Mtime.Equal(want.Mtime):
		return "another time"
	}
	return ""
}

func TestApply(t *testing.T) {
	together(t)
	for _, name := range fixture.Basic.FS {
		t.Run(name, func(t *testing.T) {
			if name != "ext4" {
				tier.Full(t, "salvage apply to "+name)
			}
			b := newBench(t, fixture.Basic, name)
			dry := b.apply("--dry-run")
			b.untouched()
			if dry.Plan == nil || len(dry.Plan.Files) == 0 || dry.Commit == nil || dry.Applied != nil || !dry.DryRun {
				t.Errorf("planned %+v, applied %+v", dry.Plan, dry.Applied)
			}
			r := b.apply()
			if r.Applied == nil || r.Applied.Files+len(r.Refused) != len(dry.Plan.Files) || r.Resumed {
				t.Errorf("applied %+v, refused %v, planned %d files", r.Applied, r.Refused, len(dry.Plan.Files))
			}
			b.tidy()
			b.complete(r)
			b.again(r)
		})
	}
}

// again applies the same memory once more, and checks that everything is found to be there.
func (b *bench) again(r offline.Report) {
	b.t.Helper()
	if c := r.Commit; c == nil || c.Placed != len(r.Plan.Files) || c.Unplaced != "" {
		b.t.Errorf("not all %d files were placed: %+v", len(r.Plan.Files), c)
	}
	before := sumOf(b.t, b.disk.Image)
	again := b.apply()
	if c := again.Commit; c == nil || c.Case != "finished before" || c.Placed != len(r.Plan.Files) || c.Unplaced != "" {
		b.t.Errorf("applied again: %+v, %d files planned", c, len(again.Plan.Files))
	}
	if sumOf(b.t, b.disk.Image) != before {
		b.t.Error("applied again, it changed the disk")
	}
	b.tidy()
}

// TestApplyInGuest makes the guest do what can also be done by placement, without a guest.
func TestApplyInGuest(t *testing.T) {
	together(t)
	tier.Full(t, "salvage apply to ext4 by a guest")
	b := newBench(t, fixture.Basic, "ext4").inGuest()
	b.complete(b.apply())
	b.fails("mounted") // by the guest: the disk is not as the crash left it
	b.tidy()
}

// TestApplyWithoutJournal tests file systems whose log we do not finish: what the log would
// have had is made again.
func TestApplyWithoutJournal(t *testing.T) {
	together(t)
	for _, of := range []struct{ kernel, fs string }{
		{fixture.Default, "xfs"}, {fixture.Default, "xfs-1k"}, {fixture.Default, "btrfs"},
		{"6.12-cloud", "xfs"}, {"6.12-cloud", "btrfs"}, {"newest-cloud", "xfs"}, {"newest-cloud", "btrfs"},
	} {
		t.Run(of.kernel+" "+of.fs, func(t *testing.T) {
			if of.fs != "xfs" { // make test has btrfs in TestApplyMounted
				tier.Full(t, "salvage apply to "+of.fs)
			}
			b := newBench(t, fixture.Everything(of.kernel), of.fs)
			r := b.apply()
			for _, why := range r.Refused {
				t.Log(why)
			}
			b.tidy()
			b.complete(r)
			b.fails("mounted since the crash")
			b.tidy()
		})
	}
}

// TestApplyChecked tests a file system without a journal, which needs e2fsck: this
// machine's e2fsck checks a copy of the disk, and no guest is booted.
func TestApplyChecked(t *testing.T) {
	together(t)
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		t.Skipf("a file is served by FUSE, as root: %v", err)
	}
	b := newBench(t, fixture.Everything(fixture.Default), "ext2")
	r := b.apply("--guest", "")
	stages := make(map[string]bool)
	for _, s := range r.Stages {
		stages[s.Name] = true
	}
	if r.Applied == nil || r.Applied.Check == nil || !stages["e2fsck"] || !stages["write redo"] {
		t.Errorf("it was not checked here: %v, %+v, %+v", stages, r.Applied, r.Commit)
	}
	if c := r.Commit; c == nil || c.Files == 0 || c.Unplaced != "" {
		t.Errorf("%+v", c)
	}
	b.tidy()
	b.complete(r)
	b.fails("checked since the crash")
	b.tidy()
}

// TestApplyUnsupported tests file systems whose data can only be extracted.
func TestApplyUnsupported(t *testing.T) {
	together(t)
	b := newBench(t, fixture.Everything(fixture.Default), "vfat")
	b.fails("no file system that can be written to")
	b = newBench(t, fixture.Everything("5.10-cloud"), "xfs") // this kernel keeps no types of its modules
	b.fails("not in this kernel")
	b.untouched()
}

func TestApplyForPeople(t *testing.T) {
	together(t)
	b := newBench(t, fixture.Basic, "ext4")
	got := command(t, "salvage", "apply", b.image.RAM, "--disk", b.disk.Image, "--dry-run")
	for _, want := range []string{b.disk.UUID, "old/append", "files to bring up to date", "left alone", "nothing was written"} {
		if got.err != nil || !strings.Contains(got.out, want) {
			t.Errorf("%v: no %q in %.400s", got.err, want, got.out)
		}
	}
	b.untouched()
}
