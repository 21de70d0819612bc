package supervisor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"understudy.dev/understudy/internal/live/pair"
)

// LackingRoots returns the partitions whose own root disks may lack data that only their memory in the run directory
// has. For a pair that ended badly, these are all partitions except those whose disks have that data, or as much of
// it as could be brought there. For other pairs, it is a dead side whose root disk was not rescued yet, or a side
// whose memory is kept for it: one that was not powered off.
func (d *RunDir) LackingRoots() ([]pair.Partition, error) {
	whole, err := d.pair()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := d.Record
	var lacking []pair.Partition
	for _, p := range whole.Partitions {
		if _, err := os.Stat(d.RAM(p.Name)); p.Root == "" || errors.Is(err, fs.ErrNotExist) || slices.Contains(r.Partly, p.Name) {
			continue
		}
		if r.deadRoot(p) || slices.ContainsFunc(r.Kept, d.keptFor(p)) || !r.Saved && !slices.Contains(r.Roots, p.Name) {
			lacking = append(lacking, p)
		}
	}
	return lacking, nil
}

// deadRoot reports whether a partition is the dead side, and its root disk is still to be brought up to date.
func (r *Record) deadRoot(p pair.Partition) bool {
	return r.Dead != nil && r.Dead.Name == p.Name && r.Dead.Root != ""
}

// keptFor returns a function that reports whether kept memory is that of a partition, for its root disk.
func (d *RunDir) keptFor(p pair.Partition) func(KeptMemory) bool {
	return func(k KeptMemory) bool { return k.File == d.RAM(p.Name) }
}

// RootHas changes r, which is to be written, to say that a partition's root disk has everything from its memory.
func (d *RunDir) RootHas(r *Record, p pair.Partition) {
	r.Roots = append(slices.Clone(r.Roots), p.Name)
	r.Kept = slices.DeleteFunc(slices.Clone(r.Kept), d.keptFor(p))
	if r.deadRoot(p) {
		dead := *r.Dead
		dead.Root = ""
		if r.Dead = &dead; dead.Why == "" {
			r.Dead = nil
		}
	}
}

// RootLacks changes r, which is to be written, to say that it does not, and why: ErrPartly if everything was brought
// there that can be, nil if nothing was tried yet.
func (d *RunDir) RootLacks(r *Record, p pair.Partition, why error) {
	lacking := DeadSide{Name: p.Name, Root: p.Root}
	if errors.Is(why, ErrPartly) {
		r.Partly = append(slices.Clone(r.Partly), p.Name)
		lacking.Why = fmt.Sprintf("some of its unsaved data could not be written to its root disk, %s: understudy salvage extract FILE reads that", p.Root)
	}
	switch {
	case !r.deadRoot(p):
		if !slices.ContainsFunc(r.Kept, d.keptFor(p)) {
			r.Kept = append(slices.Clone(r.Kept), KeptMemory{File: d.RAM(p.Name), Why: lacking.kept()})
		}
	case lacking.Why != "":
		dead := *r.Dead
		dead.because(lacking.Why)
		dead.Root = ""
		r.Dead = &dead
	}
}

// ErrPartly means that memory is still needed although it was brought to a disk: something of it was refused.
var ErrPartly = errors.New("something was refused")
