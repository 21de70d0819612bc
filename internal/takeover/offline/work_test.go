package offline

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/disk"
)

// TestSameName checks that disks with the same name, in different directories, do not share a work directory.
func TestSameName(t *testing.T) {
	work := t.TempDir()
	job := Job{Super: []Region{{Off: superAt, Data: make([]byte, 1024)}}, Raw: []Raw{{Off: 4096, Data: bytes.Repeat([]byte("new "), 128)}}}
	var disks []*Disk
	for i := range 2 {
		path := filepath.Join(t.TempDir(), "disk.img")
		if err := os.WriteFile(path, bytes.Repeat([]byte{byte(i)}, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := Source{}.Open(path, disk.Where{}, work)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		disks = append(disks, d)
	}
	mine := Identity{Sum: "mine"}
	job.Identity = mine
	if err := errors.Join(disks[0].clear(mine), disks[0].prepare(t.Context(), job, nil, &Result{}), disks[0].put(disks[0].left.veil())); err != nil {
		t.Fatal(err)
	}
	job.Identity = Identity{Sum: "other"}
	if _, err := disks[1].Apply(t.Context(), job, nil); err != nil {
		t.Fatal(err)
	}
	path := disks[0].path
	disks[0].Close()
	if r, err := Settle(t.Context(), path, work, Source{}); err != nil || len(r) != 1 {
		t.Errorf("%v, %d reports", err, len(r))
	}
	if left, err := os.ReadDir(work); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestWorkOfOlder checks that a disk's work directory is found where an older program made it, and that another
// disk does not take it for its own.
func TestWorkOfOlder(t *testing.T) {
	work, paths := t.TempDir(), [2]string{filepath.Join(t.TempDir(), "disk.img"), filepath.Join(t.TempDir(), "disk.img")}
	old := filepath.Join(work, "disk.img.understudy")
	r := sample()
	r.Step, r.Disk = stepApply, paths[0]
	if err := errors.Join(os.Mkdir(old, 0o700), r.write(old)); err != nil {
		t.Fatal(err)
	}
	for i, path := range paths {
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := Source{}.Open(path, disk.Where{}, work)
		if err != nil {
			t.Fatal(err)
		}
		if d.Close(); (d.work == old) != (i == 0) || (d.left != nil) != (i == 0) {
			t.Errorf("%s: %s, %+v", path, d.work, d.left)
		}
	}
}

// TestOutlasts checks that what can finish a disk is not kept where a power loss takes it.
func TestOutlasts(t *testing.T) {
	memory, err := os.MkdirTemp("/dev/shm", "understudy-work-")
	if err != nil {
		tier.Lacks(t, err)
	}
	t.Cleanup(func() { os.RemoveAll(memory) })
	ondisk := t.TempDir()
	for dir, want := range map[string]bool{memory: true, ondisk: false} {
		if is, err := volatile(dir); is != want || err != nil {
			t.Skipf("%s is in memory: %v, %v", dir, is, err)
		}
	}
	for name, tc := range map[string]struct {
		image, work string
		fails       bool
	}{
		"a disk's in memory":  {ondisk, memory, true},
		"a disk's":            {ondisk, ondisk, false},
		"a disk's, beside it": {ondisk, "", false},
		"that of memory":      {memory, memory, false},
		"beside memory":       {memory, "", false},
		"out of memory":       {memory, ondisk, false},
	} {
		path := filepath.Join(tc.image, "disk.img")
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := Source{}.Open(path, disk.Where{}, tc.work)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.clear(trialID); (err != nil) != tc.fails || err != nil && !strings.Contains(err.Error(), "--work") {
			t.Errorf("%s: %v", name, err)
		}
		if err := errors.Join(d.remove(), d.Close()); err != nil {
			t.Error(err)
		}
		a := Adoption{Options: Options{Work: tc.work}}
		if err := a.outlasts([]Place{{Path: path}}); (err != nil) != tc.fails {
			t.Errorf("%s, before a process is ended: %v", name, err)
		}
	}
	a := Adoption{Memory: filepath.Join(memory, "m")}
	if err := a.outlasts([]Place{{Path: os.DevNull}}); err == nil {
		t.Error("the work of a device may be beside a memory file that a power loss takes")
	}
}
