package supervisor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"understudy.dev/understudy/internal/live/pair"
)

// LackingRoots are the partitions whose own root disks may lack what only their memory in the run directory has: of a
// pair that ended badly all of them, but for those that have it, or all of it that could be brought there, and else
// a dead one whose turn had not come.
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

// deadRoot reports whether a partition's root disk is that of a dead side, and is still to be brought up to date.
func (r *Record) deadRoot(p pair.Partition) bool {
	return r.Dead != nil && r.Dead.Name == p.Name && r.Dead.Root != ""
}

// keptFor reports of memory that is kept whether it is a partition's for its root disk.
func (d *RunDir) keptFor(p pair.Partition) func(KeptMemory) bool {
	return func(k KeptMemory) bool { return k.File == d.RAM(p.Name) }
}

// RootHas records in r, which is to be written, that a partition's root disk has all of its memory.
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

// RootLacks records in r, which is to be written, that it has not, and why: ErrPartly, if all was brought there that can be.
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

// ErrPartly is why memory is needed still although it was brought to a disk: something of it was refused.
var ErrPartly = errors.New("something was refused")
