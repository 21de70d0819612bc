package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/tier"
	"understudy.dev/understudy/internal/live/dirs"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/guest"
	"understudy.dev/understudy/internal/live/partition"
	"understudy.dev/understudy/internal/takeover/offline"
)

// guestFor returns a guest with the program under test.
func guestFor(t *testing.T) *offline.Guest {
	t.Helper()
	kernel, modules, err := dirs.Kernel("")
	if err != nil {
		tier.Lacks(t, err)
	}
	cpus := thisMachine(t).Two()
	return &offline.Guest{
		Kernel: kernel, Accel: partition.TCG, CPUs: cpus[:], Dir: dirs.Run("apply-raw"),
		Image: guest.Image{Program: binary, Modules: modules}.WriteFile,
	}
}

// TestApplyRaw writes blocks of the disk itself before it is mounted, and has the file
// system checked.
func TestApplyRaw(t *testing.T) {
	needGuests(t) // alone: nothing may be left
	tier.Full(t, "blocks written before the mount, by themselves")
	b := newBench(t, fixture.Basic, "ext4")
	job := offline.Job{
		Identity: offline.Identity{Sum: "raw"}, Type: "ext4", Check: true,
		Gather: func([]byte) error { return nil },
		Super:  []offline.Region{{Off: 1024, Data: make([]byte, 1024)}},
	}
	open := func() *offline.Disk {
		d, err := offline.Source{}.Open(b.disk.Image, disk.Where{}, "")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return d
	}
	d := open()

	// The superblock's own block is overwritten with zeros.
	job.Raw = []offline.Raw{{Off: 0, Data: make([]byte, 4096)}}
	for i := range job.Raw[0].Data {
		job.Raw[0].Data[i] = byte(rand.Uint32())
	}
	job.Check = false
	if _, err := d.Apply(t.Context(), job, guestFor(t)); err == nil || !strings.Contains(err.Error(), "mount") {
		t.Errorf("mounted without a superblock: %v", err)
	}
	b.untouched()
	// One beyond the end, one of half a sector, and one that is not aligned.
	for _, bad := range []offline.Raw{{Off: d.Size, Data: make([]byte, 512)}, {Off: 0, Data: make([]byte, 100)}, {Off: 7, Data: make([]byte, 512)}} {
		job.Raw = []offline.Raw{bad}
		if _, err := d.Apply(t.Context(), job, guestFor(t)); err == nil || !strings.Contains(err.Error(), "stage blocks") {
			t.Errorf("%d bytes at %d: %v", len(bad.Data), bad.Off, err)
		}
	}
	b.untouched()

	// Two blocks at the end of the disk that no file has.
	data := make([]byte, 3<<20)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	at := d.Size - int64(len(data))
	job.Raw = []offline.Raw{{Off: at, Data: data[:512]}, {Off: at + 512, Data: data[512:]}}
	job.Check = true
	r, err := d.Apply(t.Context(), job, guestFor(t))
	if err != nil {
		t.Fatal(err)
	}
	if r.Check == nil || r.Check.Status > 1 || !strings.Contains(r.Check.Output, "Pass 5") {
		t.Errorf("the check says %+v", r.Check)
	}
	got := make([]byte, len(data))
	f, err := os.Open(b.disk.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(got, at); err != nil || !bytes.Equal(got, data) {
		t.Errorf("other bytes are on the disk, %v", err)
	}
	b.tidy()
	if left, _ := filepath.Glob(dirs.Run("apply-*")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}
