package offline

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/internal/lab/lvmdisk"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/draft"
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
			reports, err := Settle(t.Context(), tr.path, "", Source{})
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
			if again, err := Settle(t.Context(), tr.path, "", Source{}); err != nil || len(again) != 0 {
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
		if r, err := Settle(t.Context(), tr.path, "", Source{}); !errors.Is(err, takeover.ErrInBetween) || !strings.Contains(err.Error(), tc.want) || len(r) > 0 {
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
		d, err := Source{}.Open(in(name), disk.Where{}, "")
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
		r, err := Settle(t.Context(), in(name), "", Source{})
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

// TestSettleParts checks that each part of a disk in between is finished, from its own work directory: all of it, partitions, and a logical
// volume in two pieces.
func TestSettleParts(t *testing.T) {
	path, work := filepath.Join(t.TempDir(), "disk.img"), t.TempDir()
	all := make([]byte, 4<<20)
	for i, kind := range []byte{0x83, 0x83, 0x8e} {
		entry := all[446+16*i:]
		entry[4] = kind
		binary.LittleEndian.PutUint32(entry[8:], uint32(2048*(1+i)))
		binary.LittleEndian.PutUint32(entry[12:], 2048)
	}
	all[510], all[511] = 0x55, 0xaa
	lvmdisk.Write(all[3<<20:], lvmdisk.UUID, lvmdisk.Group(1<<20, "", lvmdisk.Volume("a-b", lvmdisk.Visible, lvmdisk.Linear(3, 1), lvmdisk.Linear(1, 1))), lvmdisk.Header)
	if err := os.WriteFile(path, all, 0o600); err != nil {
		t.Fatal(err)
	}
	const pieces = 3<<20 + lvmdisk.Start
	for _, tt := range []struct {
		where  disk.Where
		at     [2]int // where its bytes 4096 and 128 KiB - 512 are on the disk
		second int    // where the byte 128 KiB is
	}{
		{disk.Where{}, [2]int{4096, 128<<10 - 512}, 128 << 10}, // whatever the table says
		{disk.Where{Part: 1}, [2]int{1<<20 + 4096, 1<<20 + 128<<10 - 512}, 1<<20 + 128<<10},
		{disk.Where{Part: 2}, [2]int{2<<20 + 4096, 2<<20 + 128<<10 - 512}, 2<<20 + 128<<10},
		{disk.Where{Volume: "vg0/a-b"}, [2]int{pieces + 3*lvmdisk.Extent + 4096, pieces + 4*lvmdisk.Extent - 512}, pieces + lvmdisk.Extent},
	} {
		d, err := Source{}.Open(path, tt.where, work)
		if err != nil {
			t.Fatal(err)
		}
		text := []byte(tt.where.Name() + strings.Repeat(".", 512))[:512]
		id := Identity{Image: "ram", Kernel: "6.1", UUID: "u", Sum: tt.where.Name()}
		free := bytes.Repeat(text, 2)
		job := Job{
			Identity: id, Super: []Region{{Off: superAt, Data: make([]byte, 1024)}}, Raw: []Raw{{Off: 4096, Data: text}},
			Free: []draft.Free{{Off: 128<<10 - 512, Len: 1024, Data: func() ([][]byte, error) { return [][]byte{free[:200], free[200:700], free[700:]}, nil }}},
		}
		if err := d.clear(id); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(d.prepare(t.Context(), job, nil, &Result{}), d.put(d.left.veil()), d.Close()); err != nil {
			t.Fatal(err)
		}
		copy(all[tt.at[0]:], text)
		copy(all[tt.at[1]:], text)
		copy(all[tt.second:], text)
	}
	r, err := Settle(t.Context(), path, work, Source{})
	if err != nil || len(r) != 4 {
		t.Fatalf("%v, %d reports", err, len(r))
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, all) {
		t.Errorf("%v: the disk is not as it was to be", err)
	}
}

// TestCommitInPieces checks that an overlay on a logical volume in several pieces has what is in them, in their order, and is
// committed to them, even if the disk has another name by then, and one that QEMU's options cannot contain as it is.
func TestCommitInPieces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, `a "disk", of 2`)
	all := make([]byte, 2<<20)
	lvmdisk.Write(all, lvmdisk.UUID, lvmdisk.Group(2<<20, "", lvmdisk.Volume("root", lvmdisk.Visible, lvmdisk.Linear(9, 2), lvmdisk.Linear(2, 1), lvmdisk.Linear(0, 2))), lvmdisk.Header)
	rand.NewChaCha8([32]byte{}).Read(all[lvmdisk.Start:])
	if err := os.WriteFile(path, all, 0o600); err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	id := Identity{Image: "ram", Kernel: "6.1", UUID: "u", Sum: "s"}
	open := func(path string) *Disk {
		d, err := Source{}.Open(path, disk.Where{Volume: "vg0/root"}, work)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { d.Close() })
		return d
	}
	d := open(path)
	var want []byte
	for _, s := range d.area.At {
		want = append(want, all[s.Off:][:s.Len]...)
	}
	if len(d.area.At) != 3 || d.Size != 5*lvmdisk.Extent {
		t.Fatalf("%+v", d.area)
	}
	if err := errors.Join(d.clear(id), d.makeOverlay(t.Context())); err != nil {
		t.Fatal(err)
	}
	got, err := d.look(t.Context(), []Region{{Data: make([]byte, d.Size)}})
	if err != nil || !bytes.Equal(got[0].Data, want) {
		t.Fatalf("%v: the overlay does not have what is in the pieces", err)
	}
	for _, at := range []int64{0, 2*lvmdisk.Extent - 512, 3*lvmdisk.Extent - 1024, d.Size - 2048} { // over both borders, and up to the end
		g := Region{Off: at, Data: bytes.Repeat([]byte("new text"), 256)}
		if err := d.coverOne(t.Context(), g); err != nil {
			t.Fatal(err)
		}
		copy(want[at:], g.Data)
	}
	before, err := d.read([]Region{{Off: superAt, Data: make([]byte, 1024)}})
	if err != nil {
		t.Fatal(err)
	}
	d.left = &record{Step: stepApply, Identity: id, Disk: d.path, Size: d.Size, Veil: veilOf(id), Before: before, Refused: new(bool)}
	if err := errors.Join(d.makeReady(t.Context()), d.put(d.left.veil()), d.Close()); err != nil {
		t.Fatal(err)
	}
	renamed := filepath.Join(dir, "renamed")
	if err := os.Rename(path, renamed); err != nil {
		t.Fatal(err)
	}
	d = open(renamed)
	at := d.area.At
	if _, err := d.Finish(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	from := 0
	for _, s := range at {
		from += copy(all[s.Off:][:s.Len], want[from:])
	}
	if now, err := os.ReadFile(renamed); err != nil || !bytes.Equal(now, all) {
		t.Errorf("%v: the disk is not as it was to be", err)
	}
	if left, err := os.ReadDir(work); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
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
		d, err := Source{}.Open(path, disk.Where{}, "")
		if errors.Is(err, takeover.ErrInBetween) != tc.is || !tc.is && err != nil {
			t.Errorf("at %d of %d: %v", tc.at, tc.size, err)
		}
		if err == nil {
			d.Close()
		}
	}
}
