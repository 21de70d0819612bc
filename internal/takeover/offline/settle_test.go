package offline

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/takeover"
)

// TestSettle interrupts a commit after each of its steps, and then finishes it without its memory.
func TestSettle(t *testing.T) {
	for n := range 8 {
		for _, redo := range []bool{true, false} {
			tr, d := newTrial(t, true, redo)
			d.breakOff(t, n+1)
			if err := d.Close(); err != nil { // as if killed
				t.Fatal(err)
			}
			// Settle leaves alone a disk that is not in between.
			want, wanted := tr.disk(), 0
			if n > 0 && n < 7 {
				want, wanted = tr.after, 1
			}
			reports, err := Settle(t.Context(), tr.path, "")
			if err != nil || len(reports) != wanted || !bytes.Equal(tr.disk(), want) {
				t.Errorf("after step %d, redo: %v: %v, %d reports, and the disk is not as it was to be", n, redo, err, len(reports))
				continue
			}
			for _, r := range reports {
				if r.Complete == redo || r.Image != trialID.Image || !r.Resumed { // something was refused in a trial with a redo file
					t.Errorf("%+v", r)
				}
				if _, err := os.Stat(tr.path + ".understudy"); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("after step %d: the work directory is left: %v", n, err)
				}
			}
			if again, err := Settle(t.Context(), tr.path, ""); err != nil || len(again) != 0 {
				t.Errorf("again: %v, %d reports", err, len(again))
			}
		}
	}
}

// TestSettleRefuses checks that disks which cannot be finished stay as they are.
func TestSettleRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*trial, *Disk)
		want  string
	}{
		"no work directory":      {func(_ *trial, d *Disk) { os.RemoveAll(d.work) }, "is not in "},
		"no redo file":           {func(_ *trial, d *Disk) { os.Remove(d.redo()) }, "is gone"},
		"a bit of the redo file": {func(tr *trial, d *Disk) { flip(tr.t, d.redo(), 4096) }, "its size, checksum or block list is wrong"},
		"a superblock half new":  {func(_ *trial, d *Disk) { d.WriteAt([]byte("mkfs"), superAt+sector) }, "neither the old one nor the new one"},
	} {
		tr, d := newTrial(t, true, true)
		d.breakOff(t, 5)
		tc.spoil(tr, d)
		d.Close()
		was := tr.disk()
		if r, err := Settle(t.Context(), tr.path, ""); !errors.Is(err, takeover.ErrInBetween) || !strings.Contains(err.Error(), tc.want) || len(r) > 0 {
			t.Errorf("%s: %v, %d reports", name, err, len(r))
		}
		if !bytes.Equal(tr.disk(), was) {
			t.Errorf("%s: the disk has changed", name)
		}
	}
}

// TestMoved checks that disks in between are each given their own data after two of them have swapped names and one has
// got a new name.
func TestMoved(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	want := make(map[string][]byte)
	for i, name := range []string{"dm-1", "dm-2", "dm-3"} {
		b := bytes.Repeat([]byte{byte(i)}, 1<<20)
		if err := os.WriteFile(in(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := Open(in(name), 0, "")
		if err != nil {
			t.Fatal(err)
		}
		id := Identity{Image: "ram", Kernel: "6.1", UUID: "u", Sum: name}
		job := Job{Identity: id, Super: []Region{{Off: superAt, Data: make([]byte, 1024)}}, Raw: []Raw{{Off: 4096, Data: bytes.Repeat([]byte(name), 128)}}}
		if err := errors.Join(d.clear(id), d.prepare(t.Context(), job, nil, &Result{}), d.put(d.left.veil()), d.Close()); err != nil {
			t.Fatal(err)
		}
		copy(b[4096:], job.Raw[0].Data)
		want[map[string]string{"dm-1": "dm-2", "dm-2": "dm-1", "dm-3": "dm-7"}[name]] = b
	}
	if err := errors.Join(os.Rename(in("dm-1"), in("x")), os.Rename(in("dm-2"), in("dm-1")), os.Rename(in("x"), in("dm-2")), os.Rename(in("dm-3"), in("dm-7"))); err != nil {
		t.Fatal(err)
	}
	for name, want := range want {
		r, err := Settle(t.Context(), in(name), "")
		if err != nil || len(r) != 1 {
			t.Errorf("%s: %v, %d reports", name, err, len(r))
		}
		if got, err := os.ReadFile(in(name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %v: it is not as it was to be", name, err)
		}
	}
	if left, err := filepath.Glob(in("*" + workSuffix + "*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestSettlePartition checks that each partition in between is finished, from its own work directory.
func TestSettlePartition(t *testing.T) {
	path, work := filepath.Join(t.TempDir(), "disk.img"), t.TempDir()
	disk := make([]byte, 4<<20)
	for i := range 2 {
		entry := disk[446+16*i:]
		entry[4] = 0x83
		binary.LittleEndian.PutUint32(entry[8:], uint32(2048*(1+i)))
		binary.LittleEndian.PutUint32(entry[12:], 2048)
	}
	disk[510], disk[511] = 0x55, 0xaa
	if err := os.WriteFile(path, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	for part := 1; part <= 2; part++ {
		d, err := Open(path, part, work)
		if err != nil {
			t.Fatal(err)
		}
		id := Identity{Image: "ram", Kernel: "6.1", UUID: "u", Sum: string(rune('0' + part))}
		job := Job{Identity: id, Super: []Region{{Off: superAt, Data: make([]byte, 1024)}}, Raw: []Raw{{Off: 4096, Data: bytes.Repeat([]byte{byte(part)}, 512)}}}
		if err := d.clear(id); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(d.prepare(t.Context(), job, nil, &Result{}), d.put(d.left.veil()), d.Close()); err != nil {
			t.Fatal(err)
		}
		copy(disk[part<<20+4096:], job.Raw[0].Data)
	}
	r, err := Settle(t.Context(), path, work)
	if err != nil || len(r) != 2 {
		t.Fatalf("%v, %d reports", err, len(r))
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, disk) {
		t.Errorf("%v: the disk is not as it was to be", err)
	}
}

// TestInBetween checks that a veil is found in each sector where a superblock may be.
func TestInBetween(t *testing.T) {
	for _, tc := range []struct {
		at, size int64
		is       bool
	}{
		{0, 1 << 20, true}, {1024, 1 << 20, true}, {1536, 1 << 20, true}, {64 << 10, 1 << 20, true}, {64<<10 + 7*sector, 1 << 20, true},
		{1536, 2048, true}, {4096, 1 << 20, false}, {64<<10 + 8*sector, 1 << 20, false}, {0, 64<<10 + sector, true},
	} {
		path := filepath.Join(t.TempDir(), "disk.img")
		b := make([]byte, tc.size)
		copy(b[tc.at:], veilText)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := Open(path, 0, "")
		if errors.Is(err, takeover.ErrInBetween) != tc.is || !tc.is && err != nil {
			t.Errorf("at %d of %d: %v", tc.at, tc.size, err)
		}
		if err == nil {
			d.Close()
		}
	}
}
