package offline

import (
	"cmp"
	"fmt"
	"slices"

	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/takeover/draft"
)

// writeFree writes the data for free blocks, durably. These blocks are in use neither after
// an ordinary recovery of the disk, nor by anything that is to be written over that. Until
// the commit, the disk reads as before; an interrupted run leaves bytes there that nothing
// reads, and another run writes them again.
func (d *Disk) writeFree(all []draft.Free) error {
	if len(all) == 0 {
		return nil
	}
	at := make([]disk.Stretch, len(all))
	for i, f := range all {
		at[i] = disk.Stretch{Off: f.Off, Len: f.Len}
	}
	err := d.section().Write(at, func(i int) ([][]byte, error) { return all[i].Data() })
	if err == nil {
		err = d.Sync()
	}
	if err != nil {
		return fmt.Errorf("write to free blocks: %w", err)
	}
	return nil
}

// checkFree checks that the stretches for free blocks are within the disk, and overlap
// neither each other nor anything else that is written.
func (d *Disk) checkFree(j Job) error {
	type span struct {
		off, end int64
		free     bool
	}
	var all []span
	for _, f := range j.Free {
		if f.Off < 0 || f.Len <= 0 || f.Off%sector != 0 || f.Len%sector != 0 || f.Off > d.Size-f.Len {
			return fmt.Errorf("write to free blocks: %d bytes at %d of a disk of %d", f.Len, f.Off, d.Size)
		}
		all = append(all, span{f.Off, f.Off + f.Len, true})
	}
	for _, w := range j.Raw {
		all = append(all, span{w.Off, w.Off + int64(len(w.Data)), false})
	}
	for _, g := range d.left.Before {
		all = append(all, span{g.Off, g.Off + int64(len(g.Data)), false})
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.off, b.off) })
	end, free := int64(0), false // of the span that reaches farthest so far
	for _, s := range all {
		if s.off < end && (s.free || free) {
			return fmt.Errorf("write to free blocks: byte %d is written twice", s.off)
		}
		if s.end > end {
			end, free = s.end, s.free
		}
	}
	return nil
}

// freeBytes is how much is written to free blocks.
func freeBytes(all []draft.Free) (n int64) {
	for _, f := range all {
		n += f.Len
	}
	return n
}
