package main

import (
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"testing"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/internal/lab/fixture"
	"understudy.dev/understudy/internal/lab/tier"
)

// TestApplyFragments checks that the same unsaved data is on the disk in no more pieces than
// if the kernel in a guest writes it back, and that the free blocks are in no smaller ones.
func TestApplyFragments(t *testing.T) {
	together(t)
	tier.Full(t, "fragments beside the kernel's own writeback")
	if _, err := exec.LookPath("e2freefrag"); err != nil {
		tier.Lacks(t, err)
	}
	for name, spec := range map[string]fixture.Spec{"basic": fixture.Basic, "many": fixture.Many, "bulk": fixture.Little} {
		t.Run(name, func(t *testing.T) {
			ours := newBench(t, spec, "ext4")
			if r := ours.apply(); r.Commit == nil || r.Commit.Placed == 0 {
				t.Errorf("%+v", r.Commit)
			}
			theirs := newBench(t, spec, "ext4").inGuest()
			theirs.apply()
			a, b := fragmentsOf(t, ours.disk.Image), fragmentsOf(t, theirs.disk.Image)
			t.Logf("here: %+v; in a guest: %+v", a, b)
			if a.files != b.files || a.blocks > b.blocks+b.blocks/100+16 || a.extents > b.extents+b.extents/20 {
				t.Errorf("here: %+v; in a guest: %+v", a, b)
			}
			if a.free*2 < b.free {
				t.Errorf("the average of what is free in one piece is %d KiB; in a guest %d", a.free, b.free)
			}
		})
	}
}

// fragments counts the fragments of all regular files of a disk.
type fragments struct {
	files, extents int
	blocks         uint64 // of their data
	free           int    // average size of a free extent, in KiB (e2freefrag(8))
}

var averageFree = regexp.MustCompile(`Avg\. free extent: (\d+) KB`)

func fragmentsOf(t *testing.T, path string) fragments {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fs, err := ext4.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	var out fragments
	for ino := fs.Super.FirstInode; ino <= addr.Ino(fs.Super.Inodes); ino++ {
		i, err := fs.Inode(ino)
		if err != nil || !i.IsRegular() || i.Links == 0 || i.Flags&ext4.InodeExtents == 0 {
			continue // inodes that were never used have no valid checksum
		}
		out.files++
		block := uint64(fs.Super.BlockSize)
		var last ext4.Run
		for at := uint64(0); at*block < i.Size; {
			r, err := fs.Map(i, uint32(at))
			if errors.Is(err, ext4.ErrHole) {
				at++
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if last.Length == 0 || last.Physical+addr.Block(last.Length) != r.Physical || uint64(last.Logical)+uint64(last.Length) != at {
				out.extents++
			}
			last = r
			at += uint64(r.Length)
			out.blocks += uint64(r.Length)
		}
	}
	said, err := exec.Command("e2freefrag", path).Output()
	if m := averageFree.FindSubmatch(said); err == nil && m != nil {
		out.free, err = strconv.Atoi(string(m[1]))
	}
	if err != nil || out.free == 0 {
		t.Fatalf("%v: %s", err, said)
	}
	return out
}
