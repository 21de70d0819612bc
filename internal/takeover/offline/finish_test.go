package offline

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/draft"
)

// trial is a disk with an overlay, filled as a guest would fill it.
type trial struct {
	t             *testing.T
	path          string
	before, after []byte
}

const superAt = 1024

var trialID = Identity{Image: "ram", Kernel: "6.1", UUID: "u", Sum: "s"}

// newTrial fills an overlay, or a redo file if redo is set: it changes bytes in several
// places of the disk, and the superblock, too, if differs is set.
func newTrial(t *testing.T, differs, redo bool) (*trial, *Disk) {
	t.Helper()
	for _, tool := range []string{imageTool, writeTool} {
		if _, err := exec.LookPath(tool); err != nil && !redo {
			t.Skipf("%v: scripts/setup.sh installs it", err)
		}
	}
	tr := &trial{t: t, path: filepath.Join(t.TempDir(), "a disk, with odd=name.img"), before: make([]byte, 4<<20)}
	for i := range tr.before {
		tr.before[i] = byte(rand.Uint32())
	}
	if err := os.WriteFile(tr.path, tr.before, 0o600); err != nil {
		t.Fatal(err)
	}
	d := tr.open()
	if err := d.clear(trialID); err != nil {
		t.Fatal(err)
	}
	super, err := d.read([]Region{{Off: superAt, Data: make([]byte, 1024)}})
	if err != nil {
		t.Fatal(err)
	}
	d.left = &record{Step: stepApply, Identity: trialID, Disk: d.path, Size: d.Size, Before: super, Refused: &redo}
	if differs { // or else the record is of an older program
		d.left.Veil = veilOf(trialID)
	}
	if err := d.left.write(d.work); err != nil {
		t.Fatal(err)
	}
	changes := []Region{{Off: 1 << 20, Data: bytes.Repeat([]byte("new"), 512<<10)}, {Off: 4<<20 - 512, Data: bytes.Repeat([]byte("end "), 128)}}
	if differs {
		changes = append(changes, Region{Off: superAt, Data: bytes.Repeat([]byte("super!! "), 128)})
	}
	tr.after = bytes.Clone(tr.before)
	for _, c := range changes {
		copy(tr.after[c.Off:], c.Data)
	}
	fill := tr.fillOverlay
	if redo {
		fill = tr.fillRedo
	}
	if err := fill(d, changes); err != nil {
		t.Fatal(err)
	}
	if redo { // the free blocks are already written, which does not count before the commit
		copy(tr.before[trialFree:], freeText)
		copy(tr.after[trialFree:], freeText)
	}
	if !bytes.Equal(tr.disk(), tr.before) {
		t.Error("the overlay is the disk")
	}
	return tr, d
}

func (tr *trial) fillOverlay(d *Disk, changes []Region) error {
	if err := d.makeOverlay(tr.t.Context()); err != nil {
		return err
	}
	for _, c := range changes {
		if err := d.coverOne(tr.t.Context(), c); err != nil {
			return err
		}
	}
	return d.makeReady(tr.t.Context())
}

// fillRedo writes the new superblock, if there is one, as part of a larger piece.
func (tr *trial) fillRedo(d *Disk, changes []Region) error {
	var j Job
	for _, c := range changes {
		w := Raw(c)
		if c.Off == superAt {
			w = Raw{Off: 0, Data: append(append(bytes.Clone(tr.before[:superAt]), c.Data...), tr.before[2*superAt:4*superAt]...)}
		}
		j.Raw = append(j.Raw, w)
	}
	j.Free = []draft.Free{{Off: trialFree, Len: int64(len(freeText)), Data: func() ([][]byte, error) { return [][]byte{freeText[:512], freeText[512:]}, nil }}}
	return d.prepareRedo(tr.t.Context(), j)
}

// trialFree is the offset, in bytes, of the blocks of a trial that no file has.
const trialFree = 3 << 20

var freeText = bytes.Repeat([]byte("free"), 4096)

func (tr *trial) open() *Disk {
	tr.t.Helper()
	d, err := Source{}.Open(tr.path, disk.Where{}, "")
	if err != nil {
		tr.t.Fatal(err)
	}
	tr.t.Cleanup(func() { d.Close() })
	return d
}

func (tr *trial) disk() []byte {
	tr.t.Helper()
	b, err := os.ReadFile(tr.path)
	if err != nil {
		tr.t.Fatal(err)
	}
	return b
}

// steps returns the steps of a commit, after each of which a run may be interrupted.
func (d *Disk) steps(t *testing.T) []func() error {
	return []func() error{
		func() error { return nil },
		func() error { // a torn write
			_, err := d.WriteAt(d.left.veil()[0].Data[:sector], superAt)
			return err
		},
		func() error { return d.put(d.left.veil()) },
		func() error { d.left.Step = stepVeiled; return d.left.write(d.work) },
		func() error { // half of a commit
			_, err := d.WriteAt(bytes.Repeat([]byte("new"), 100<<10), 1<<20)
			return err
		},
		func() error { return d.carryOver(t.Context()) },
		func() error { // a torn write
			_, err := d.WriteAt(d.left.After[0].Data[:sector], superAt)
			return err
		},
		func() error { return d.put(d.left.After) },
	}
}

// breakOff takes the first n of these steps.
func (d *Disk) breakOff(t *testing.T, n int) {
	t.Helper()
	for _, step := range d.steps(t)[:n] {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFinish interrupts a commit after each of its steps, and then finishes it.
func TestFinish(t *testing.T) {
	for _, differs := range []bool{true, false} {
		for _, redo := range []bool{true, false} {
			for n := range 8 {
				breakOff(t, n, differs, redo)
			}
		}
	}
}

func breakOff(t *testing.T, n int, differs, redo bool) {
	t.Helper()
	tr, d := newTrial(t, differs, redo)
	d.breakOff(t, n+1)
	if err := d.Close(); err != nil { // as if killed
		t.Fatal(err)
	}
	again := tr.open()
	left, unfinished := again.Unfinished()
	if unfinished != (n > 0) {
		t.Errorf("after step %d it is unfinished: %v", n, unfinished)
	}
	if !unfinished {
		if err := again.clear(trialID); err != nil || !bytes.Equal(tr.disk(), tr.before) {
			t.Errorf("after step %d: not as it was: %v", n, err)
		}
		return
	}
	if left != trialID {
		t.Errorf("it is of %+v", left)
	}
	if is, err := InBetween(again.section()); err != nil || is != (n < 7) {
		t.Errorf("after step %d it is in between: %v, %v", n, is, err)
	}
	if _, err := again.Finish(t.Context(), Identity{Sum: "other"}); !errors.Is(err, takeover.ErrInBetween) || !strings.Contains(err.Error(), "broken off") {
		t.Errorf("finished for another: %v", err)
	}
	switch r, err := again.Finish(t.Context(), trialID); {
	case err != nil:
		t.Errorf("after step %d: %v", n, err)
	case (r.Lacks != "") != redo:
		t.Errorf("after step %d: it says that something was refused: %q, and should: %v", n, r.Lacks, redo)
	}
	if !bytes.Equal(tr.disk(), tr.after) {
		t.Errorf("after step %d, with another superblock: %v, redo: %v: the disk is not as it was to be", n, differs, redo)
	}
	if _, err := os.Stat(again.work); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after step %d: left %s: %v", n, again.work, err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestFinishOnce checks that a commit that was complete is not done again: somebody may
// have written to the disk since.
func TestFinishOnce(t *testing.T) {
	tr, d := newTrial(t, false, false)
	for _, step := range d.steps(t) {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.WriteAt([]byte("later"), 1<<20+7); err != nil {
		t.Fatal(err)
	}
	d.Close()
	if _, err := tr.open().Finish(t.Context(), trialID); err != nil {
		t.Fatal(err)
	}
	copy(tr.after[1<<20+7:], "later")
	if !bytes.Equal(tr.disk(), tr.after) {
		t.Error("what was written later is gone")
	}
}

// TestFinishRefuses checks that Finish refuses disks that somebody has written to, and work that is gone or damaged.
func TestFinishRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*trial, *Disk)
		want  string
		redo  bool
	}{
		"a superblock of its own": {func(tr *trial, d *Disk) { d.WriteAt([]byte("mkfs"), superAt+100) }, "neither the old one nor the new one", false},
		"restored":                {func(tr *trial, d *Disk) { d.WriteAt(tr.before, 0) }, "old superblock back", false},
		"no overlay":              {func(tr *trial, d *Disk) { os.Remove(d.overlay()) }, "is gone", false},
		"another size":            {func(tr *trial, d *Disk) { d.Truncate(8 << 20) }, "it has 8388608 bytes", false},
		"no redo file":            {func(tr *trial, d *Disk) { os.Remove(d.redo()) }, "is gone", true},
		"a bit of the redo file":  {func(tr *trial, d *Disk) { flip(tr.t, d.redo(), 4096) }, "its size, checksum or block list is wrong", true},
		"the end of it":           {func(tr *trial, d *Disk) { os.Truncate(d.redo(), d.left.Redo.Size-1) }, "its size, checksum or block list is wrong", true},
	} {
		tr, d := newTrial(t, true, tc.redo)
		d.breakOff(t, 5)
		tc.spoil(tr, d)
		d.Close()
		spoiled := tr.disk()
		again := tr.open()
		if _, err := again.Finish(t.Context(), trialID); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
		again.Close()
		if !bytes.Equal(tr.disk(), spoiled) {
			t.Errorf("%s: the disk has changed", name)
		}
	}
}

// flip changes a bit of a file.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b[:], at); err != nil {
		t.Fatal(err)
	}
}

// TestVeilTells checks that a veiled disk is refused if its record is not found.
func TestVeilTells(t *testing.T) {
	tr, d := newTrial(t, true, false)
	if err := d.put(d.left.veil()); err != nil {
		t.Fatal(err)
	}
	d.Close()
	if _, err := (Source{}).Open(tr.path, disk.Where{}, t.TempDir()); err == nil || !strings.Contains(err.Error(), "--work") {
		t.Errorf("opened without its record: %v", err)
	}
	if !strings.HasPrefix(string(tr.disk()[superAt:]), "understudy salvage apply was broken off") {
		t.Error("the disk does not say what it is")
	}
}

// TestOther checks for which disks the record of an interrupted commit is recognized as another disk's. A disk that
// is in between, or may be, is never taken for another one.
func TestOther(t *testing.T) {
	put := func(text string, off int64) func(*trial, *Disk) {
		return func(_ *trial, d *Disk) { d.WriteAt(bytes.Repeat([]byte(text), 1024/len(text)), off) }
	}
	nothing := func(*trial, *Disk) {}
	sibling := func(_ *trial, d *Disk) { // another disk of the same memory
		id := trialID
		id.Sum = "t"
		d.put((&record{Before: d.left.Before, Identity: id, Veil: veilOf(id)}).veil())
	}
	foreign := func(_ *trial, d *Disk) {
		d.put((&record{Before: d.left.Before, Identity: Identity{Image: "others"}}).veil())
	}
	for name, tc := range map[string]struct {
		step              int
		spoil             func(*trial, *Disk)
		unfinished, other bool
		fails             bool // as a disk that is in between
	}{
		"about to begin":           {0, nothing, false, false, false},
		"a part of the veil":       {1, nothing, true, false, false},
		"veiled, unrecorded":       {2, nothing, true, false, false},
		"veiled":                   {3, nothing, true, false, false},
		"in the midst":             {5, nothing, true, false, false},
		"a part of the new one":    {6, nothing, true, false, false},
		"all of the new one":       {7, nothing, true, false, false},
		"damaged beside its veil":  {3, func(_ *trial, d *Disk) { d.WriteAt(make([]byte, sector), superAt) }, true, false, false},
		"the old one":              {5, func(tr *trial, d *Disk) { d.WriteAt(tr.before, 0) }, true, false, false},
		"the old and the new one":  {7, func(tr *trial, d *Disk) { d.WriteAt(tr.before[superAt:][:sector], superAt) }, true, false, false},
		"that cannot be read":      {5, func(_ *trial, d *Disk) { d.Truncate(superAt + sector) }, false, false, true},
		"of a commit of its own":   {5, foreign, false, true, true},
		"of its own, and unbegun":  {0, foreign, false, false, true},
		"of the same memory's":     {5, sibling, false, true, true},
		"with a damaged record":    {5, func(_ *trial, d *Disk) { os.WriteFile(filepath.Join(d.work, recordName), nil, 0o600) }, false, false, true},
		"another":                  {5, put("another ", superAt), true, true, false},
		"another after the end":    {7, put("another ", superAt), true, true, false},
		"another, where none was":  {0, put("another ", superAt), false, false, false},
		"another's, half the same": {7, func(_ *trial, d *Disk) { d.WriteAt(make([]byte, sector), superAt) }, true, true, false},
	} {
		tr, d := newTrial(t, true, true)
		d.breakOff(t, tc.step+1)
		tc.spoil(tr, d)
		d.Close()
		again, err := Source{}.Open(tr.path, disk.Where{}, "")
		if tc.fails != errors.Is(err, takeover.ErrInBetween) || tc.fails != (err != nil) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			continue
		}
		if _, unfinished := again.Unfinished(); unfinished != tc.unfinished || again.Other() != tc.other {
			t.Errorf("%s: unfinished: %v; another disk: %v", name, unfinished, again.Other())
		}
		again.Close()
	}
}

// TestDisown checks that the record of a commit to another disk prevents work on this one only for the same memory,
// and is kept.
func TestDisown(t *testing.T) {
	tr, d := newTrial(t, true, true)
	d.breakOff(t, 6)
	half := tr.disk()
	if _, err := d.WriteAt(bytes.Repeat([]byte("another "), 128), superAt); err != nil {
		t.Fatal(err)
	}
	work, was := d.work, tr.disk()
	d.Close()
	again := tr.open()
	job := Job{
		Identity: trialID, Super: []Region{{Off: superAt, Data: make([]byte, 1024)}},
		Raw: []Raw{{Off: 2 << 20, Data: bytes.Repeat([]byte("b"), 4096)}},
	}
	if _, err := again.Apply(t.Context(), job, nil); !errors.Is(err, takeover.ErrInBetween) || !strings.Contains(err.Error(), "Keep "+work) {
		t.Errorf("the same memory again: %v", err)
	}
	if _, err := again.Finish(t.Context(), trialID); !errors.Is(err, takeover.ErrInBetween) || !strings.Contains(err.Error(), "neither the old one nor the new one") || !strings.Contains(err.Error(), "Keep "+work) {
		t.Errorf("it is finished: %v", err)
	}
	if !bytes.Equal(tr.disk(), was) {
		t.Error("a refusal has changed the disk")
	}
	job.Identity.Sum = "other"
	if _, err := again.Apply(t.Context(), job, nil); err != nil {
		t.Fatal(err)
	}
	copy(was[2<<20:], job.Raw[0].Data)
	if !bytes.Equal(tr.disk(), was) {
		t.Error("the disk is not as it was to be")
	}
	if _, err := os.Stat(work); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left %s: %v", work, err)
	}
	aside, err := filepath.Glob(filepath.Join(filepath.Dir(work), "*-*.understudy"))
	if err != nil || len(aside) != 1 {
		t.Fatalf("set aside: %v, %v", aside, err)
	}
	if r, err := readRecord(aside[0]); err != nil || r.Identity != trialID || r.Step != stepVeiled {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := os.Stat(filepath.Join(aside[0], redoName)); err != nil {
		t.Error(err)
	}
	// The disk that it is of is finished under its new name, also from where an older program has set it aside.
	renamed := tr.path + ".renamed"
	if err := os.WriteFile(renamed, half, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{aside[0], work + "-17"} {
		if dir != aside[0] {
			if err := os.Rename(aside[0], dir); err != nil {
				t.Fatal(err)
			}
		}
		d, err := Source{}.Open(renamed, disk.Where{}, "")
		if err != nil {
			t.Fatal(err)
		}
		if left, unfinished := d.Unfinished(); !unfinished || d.Other() || left != trialID || d.work != dir {
			t.Errorf("in %s: unfinished: %v, another disk: %v, %+v", d.work, unfinished, d.Other(), left)
		}
		d.Close()
	}
	if r, err := Settle(t.Context(), renamed, "", Source{}); err != nil || len(r) != 1 {
		t.Errorf("%v, %d reports", err, len(r))
	}
	if got, err := os.ReadFile(renamed); err != nil || !bytes.Equal(got, tr.after) {
		t.Errorf("%v: it is not as it was to be", err)
	}
}

// TestFreeRefuses checks that stretches for free blocks are refused if they lie elsewhere, or if
// their bytes cannot be read: nothing on the disk changes, and no work directory is left.
func TestFreeRefuses(t *testing.T) {
	const n = 1 << 20
	text := bytes.Repeat([]byte("free"), n/4)
	whole := func() ([][]byte, error) { return [][]byte{text}, nil }
	for name, tc := range map[string]struct {
		free []draft.Free
		want string
	}{
		"behind the end":         {[]draft.Free{{Off: 4<<20 - n + sector, Len: n, Data: whole}}, "of a disk of"},
		"before the beginning":   {[]draft.Free{{Off: -sector, Len: n, Data: whole}}, "of a disk of"},
		"no sector":              {[]draft.Free{{Off: 2<<20 + 1, Len: n, Data: whole}}, "of a disk of"},
		"over the superblock":    {[]draft.Free{{Off: 0, Len: n, Data: whole}}, "written twice"},
		"over what is written":   {[]draft.Free{{Off: 3<<20 - sector, Len: n, Data: whole}}, "written twice"},
		"over another":           {[]draft.Free{{Off: 1 << 20, Len: n, Data: whole}, {Off: 2<<20 - sector, Len: n, Data: whole}}, "written twice"},
		"less than was said":     {[]draft.Free{{Off: 1 << 20, Len: n + sector, Data: whole}}, "bytes of"},
		"bytes that are not had": {[]draft.Free{{Off: 1 << 20, Len: n, Data: func() ([][]byte, error) { return nil, errors.New("absent") }}}, "absent"},
	} {
		path := filepath.Join(t.TempDir(), "disk")
		before := bytes.Repeat([]byte{7}, 4<<20)
		if err := os.WriteFile(path, before, 0o600); err != nil {
			t.Fatal(err)
		}
		d, err := Source{}.Open(path, disk.Where{}, "")
		if err != nil {
			t.Fatal(err)
		}
		job := Job{
			Identity: trialID, Super: []Region{{Off: superAt, Data: make([]byte, 1024)}}, Free: tc.free,
			Raw: []Raw{{Off: 3 << 20, Data: make([]byte, 4096)}},
		}
		if _, err := d.Apply(t.Context(), job, nil); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(d.work); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: left %s: %v", name, d.work, err)
		}
		d.Close()
		if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, before) {
			t.Errorf("%s: the disk has changed: %v", name, err)
		}
	}
}

// TestUnclean checks that unclean recognizes the superblock that an interrupted check leaves.
func TestUnclean(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 4<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mke2fs", "-qF", "-t", "ext4", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	on := &salvage.OnDisk{Family: "ext"}
	if is, err := unclean(bytes.NewReader(image), on); is || err != nil {
		t.Errorf("a new one: %v, %v", is, err)
	}
	super, err := ext4.SetUnclean(image[superAt:])
	if err != nil {
		t.Fatal(err)
	}
	copy(image[superAt:], super)
	if is, err := unclean(bytes.NewReader(image), on); !is || err != nil {
		t.Errorf("one that is not clean: %v, %v", is, err)
	}
	if is, err := unclean(bytes.NewReader(image), &salvage.OnDisk{Family: "xfs"}); is || err != nil {
		t.Errorf("another one's: %v, %v", is, err)
	}
	if _, err := unclean(bytes.NewReader(make([]byte, 4096)), on); err == nil {
		t.Error("no superblock is no error")
	}
}
