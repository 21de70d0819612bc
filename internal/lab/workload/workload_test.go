package workload

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"
)

// collect reads a tree and fails the test on any error.
func collect(t *testing.T, dir string) []Truth {
	t.Helper()
	var got []Truth
	for r, err := range Digest(dir) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r)
	}
	return got
}

// prepare makes the base tree in dir and returns the records that came out beforehand.
func prepare(t *testing.T, p *Plan, dir string) []Truth {
	t.Helper()
	var want []Truth
	if err := p.Prepare(dir, func(r Truth) error { want = append(want, r); return nil }); err != nil {
		t.Fatal(err)
	}
	return want
}

// specs are workloads from the smallest to the demo's.
func specs(t *testing.T) []Spec {
	all := []Spec{
		{Seed: 1, Files: 1, UnsavedBytes: 1},
		{Seed: 2, Files: 7, UnsavedBytes: 7},
		{Seed: 3, Files: 12, UnsavedBytes: 64 << 10},
	}
	for seed := range uint64(6) {
		all = append(all, Spec{Seed: seed << 40, Files: 40, UnsavedBytes: 4 << 20})
	}
	if !testing.Short() {
		all = append(all, DefaultSpec(4711))
	}
	return all
}

func TestTreeIsAsPredicted(t *testing.T) {
	for _, spec := range specs(t) {
		t.Run(fmt.Sprintf("seed=%d,files=%d,bytes=%d", spec.Seed, spec.Files, spec.UnsavedBytes), func(t *testing.T) {
			p, err := NewPlan(spec)
			if err != nil {
				t.Fatal(err)
			}
			dir, lost := filepath.Join(t.TempDir(), "tree"), filepath.Join(t.TempDir(), "lost")
			want := prepare(t, p, dir)
			if out, err := exec.Command("cp", "-a", dir, lost).CombinedOutput(); err != nil {
				t.Fatalf("copy the base tree: %v: %s", err, out)
			}
			if err := p.Run(dir); err != nil {
				t.Fatal(err)
			}
			if r := Compare(want, collect(t, dir)); !r.Exact() || r.Files != p.Files() {
				t.Errorf("after Run: %+v", r)
			}
			checkLost(t, p, want, collect(t, lost))
		})
	}
}

// checkLost judges the tree as it was before Run: what a crash would leave of it at worst.
func checkLost(t *testing.T, p *Plan, want, got []Truth) {
	r := Compare(want, got)
	missing, extra, wrong, syncedFiles := 0, 0, 0, 0
	for _, f := range p.files {
		switch {
		case f.base == absent:
			missing++
		case f.class == renamed:
			missing, extra = missing+1, extra+1
		case f.class == removed:
			extra++
		case f.class != untouched:
			wrong++
		}
		if f.class == synced {
			syncedFiles++
		}
	}
	if r.BytesWrong < p.UnsavedBytes() || p.UnsavedBytes() < p.spec.UnsavedBytes {
		t.Errorf("lost: %d bytes wrong, %d planned, %d asked for", r.BytesWrong, p.UnsavedBytes(), p.spec.UnsavedBytes)
	}
	if r.FilesMissing != missing || r.FilesExtra != extra || r.FilesWrong != wrong || r.SyncedWrong != syncedFiles {
		t.Errorf("lost: %+v, want %d missing, %d extra, %d wrong, %d synced wrong", r, missing, extra, wrong, syncedFiles)
	}
	if p.UnsavedFiles() <= p.spec.Files {
		t.Errorf("%d unsaved files of %d", p.UnsavedFiles(), p.spec.Files)
	}
	// Without the synced files, the bytes wrong are at least those planned, file by file.
	by := map[string]int64{}
	for _, f := range r.Findings {
		by[f.Path] = f.Bytes
	}
	for _, f := range p.files {
		if by[f.path] < f.unsaved() {
			t.Errorf("lost %s: %d bytes wrong, %d planned", f.path, by[f.path], f.unsaved())
		}
	}
}

func TestDefaultSpecKeepsItsPromises(t *testing.T) {
	for seed := range uint64(200) {
		p, err := NewPlan(DefaultSpec(seed * 0x123456789abcdef))
		if err != nil {
			t.Fatal(err)
		}
		if p.UnsavedBytes() < 96<<20 || p.UnsavedFiles() < 200 || p.TreeBytes() > 160<<20 {
			t.Errorf("seed %d: %d bytes in %d files unsaved, tree %d", seed, p.UnsavedBytes(), p.UnsavedFiles(), p.TreeBytes())
		}
		kinds, holes, shrunk, largest := map[opKind]int{}, 0, 0, int64(0)
		for _, f := range p.files {
			end := max(f.base, 0)
			for _, o := range f.ops {
				kinds[o.kind]++
				if o.kind == opTruncate && o.off == 0 {
					t.Errorf("seed %d: %s is cut to zero", seed, f.path)
				}
				if o.off > end {
					holes++
				}
				end = o.sizeAfter(end)
			}
			if end < f.base {
				shrunk++
			}
			largest = max(largest, end)
		}
		if kinds[opMap] < 10 || kinds[opTruncate] < 10 || holes < 10 || shrunk < 3 || largest > 3<<20 {
			t.Errorf("seed %d: operations %v, %d holes, %d shrunk, largest %d", seed, kinds, holes, shrunk, largest)
		}
	}
}

func TestNoTwoPagesAreAlike(t *testing.T) {
	p, err := NewPlan(Spec{Seed: 5, Files: 60, UnsavedBytes: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	pages := map[uint32]string{}
	for _, r := range prepare(t, p, t.TempDir()) {
		for i, crc := range r.Pages {
			if pageLen(r, i) < 64 || crc == zeroPageCRC {
				continue
			}
			here := fmt.Sprintf("%s page %d", r.Path, i)
			if other := pages[crc]; other != "" {
				t.Errorf("%s is like %s", here, other)
			}
			pages[crc] = here
		}
	}
	if len(pages) < 2000 {
		t.Errorf("only %d pages looked at", len(pages))
	}
}

// zeroPageCRC is the CRC-32C of a page of zeros, a hole.
const zeroPageCRC = 0x98f94189

func TestPlanFollowsFromSeed(t *testing.T) {
	spec := Spec{Seed: 9, Files: 20, UnsavedBytes: 1 << 20}
	var trees [3][]Truth
	for i := range trees {
		if i == 2 {
			spec.Seed++
		}
		p, err := NewPlan(spec)
		if err != nil {
			t.Fatal(err)
		}
		trees[i] = prepare(t, p, t.TempDir())
	}
	if r := Compare(trees[0], trees[1]); !r.Exact() {
		t.Errorf("same seed: %+v", r)
	}
	if r := Compare(trees[0], trees[2]); r.FilesWrong < 20 {
		t.Errorf("other seed: only %d files differ", r.FilesWrong)
	}
}

func TestSpecIsRefused(t *testing.T) {
	for _, s := range []Spec{{}, {Files: 10, UnsavedBytes: 9}, {Files: 1, UnsavedBytes: 1 << 40}, {Files: -1, UnsavedBytes: 5}} {
		if _, err := NewPlan(s); err == nil {
			t.Errorf("%+v: no error", s)
		}
	}
}

func TestPrepareRefusesUsedDirectory(t *testing.T) {
	p, err := NewPlan(Spec{Files: 3, UnsavedBytes: 3})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	prepare(t, p, dir)
	if err := p.Prepare(dir, func(Truth) error { return nil }); !errors.Is(err, os.ErrExist) {
		t.Errorf("second Prepare: %v", err)
	}
	stop := errors.New("stop")
	if err := p.Prepare(t.TempDir(), func(Truth) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("Prepare with a failing receiver: %v", err)
	}
}

func TestRunNeedsItsTree(t *testing.T) {
	p, err := NewPlan(Spec{Files: 3, UnsavedBytes: 3})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Run(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Run on an empty directory: %v", err)
	}
}

func TestProbeText(t *testing.T) {
	before, after := probeText(1, baseSide), probeText(1, runSide)
	if len(before) != probeSize || len(after) != probeSize {
		t.Fatalf("%d and %d bytes", len(before), len(after))
	}
	for at := 0; at < probeSize; at += PageSize {
		end := min(at+PageSize, probeSize)
		if bytes.Equal(before[at:end], after[at:end]) {
			t.Errorf("page at %d does not change", at)
		}
	}
	if bytes.Equal(after, probeText(2, runSide)) {
		t.Error("seeds give the same text")
	}
}

var measureDir = flag.String("measure", "", "measure the demo's workload in this directory")

// TestMeasure reports what the demo's workload costs; it runs only when asked to, and asserts nothing but success.
func TestMeasure(t *testing.T) {
	if *measureDir == "" {
		t.Skip("a measurement: run it with -measure DIR")
	}
	p, err := NewPlan(DefaultSpec(1))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(*measureDir, "workload")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var line bytes.Buffer
	enc := NewEncoder(&line)
	start := time.Now()
	if err := p.Prepare(dir, enc.Encode); err != nil {
		t.Fatal(err)
	}
	t.Logf("Prepare: %v", time.Since(start))
	if err := enc.Close(); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	if err := p.Run(dir); err != nil {
		t.Fatal(err)
	}
	t.Logf("Run: %v", time.Since(start))
	start = time.Now()
	got := collect(t, dir)
	t.Logf("Digest: %v", time.Since(start))
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	t.Logf("%d files, %d unsaved with %d bytes, tree %d, truth %d bytes on the line, heap %d",
		p.Files(), p.UnsavedFiles(), p.UnsavedBytes(), p.TreeBytes(), line.Len(), mem.Sys)
	want, err := ReadAll(&line)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(want) // the order does not matter
	if r := Compare(want, got); !r.Exact() {
		t.Errorf("%+v", r)
	}
}
