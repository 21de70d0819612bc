package journal

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/placement"
)

// PlaceChecked gives files their places on a disk that Finish said must be checked, once the check is
// done; did is what Finish reported. The order of the writes does not matter: the disk must be one
// that is used only as a whole. After an error it must not be used
// any more.
func (r *Rescue) PlaceChecked(disk jbd2.Disk, did *Report) (*Placement, error) {
	p := &Placement{Refused: make(map[addr.Ino]error)}
	rescue := *r
	rescue.data = nil
	f := rescue.finisher(disk, &Report{Placement: p, Open: did.Open})
	found, waiting, err := f.findPlaces(did)
	if err != nil || found == nil || len(found.Placed) == 0 {
		p.Err = err
		return p, nil // nothing was written
	}
	if err := f.takePlaced(waiting, found, nil); err != nil {
		return p, err
	}
	// A block that is free on what e2fsck has left need not be free on the disk itself.
	for n := range f.data {
		f.data[n].free = false
	}
	if err := f.write(nil); err != nil {
		return p, err
	}
	for _, home := range slices.Sorted(maps.Keys(found.Blocks)) {
		if _, err := disk.WriteAt(found.Blocks[home], int64(home)*int64(f.super.BlockSize)); err != nil {
			return p, fmt.Errorf("write blocks of metadata: %w", err)
		}
	}
	f.havePlaced()
	return p, disk.Sync()
}

// findPlaces finds places on a disk that was checked, and audits them. Files that need anything else
// after the mount (Report.AfterMount) get none.
func (f *finisher) findPlaces(did *Report) (*placement.Result, []unplaced, error) {
	fs, err := ext4.Open(f.disk)
	if err != nil {
		return nil, nil, err
	}
	if err := f.quotasCounted(fs); err != nil {
		return nil, nil, err
	}
	waiting, err := f.waiting(&change{fs: fs, before: f.disk})
	if err != nil {
		return nil, nil, err
	}
	waiting = slices.DeleteFunc(waiting, func(u unplaced) bool {
		return slices.ContainsFunc(did.AfterMount, func(m AfterMount) bool { return m.Inode.Ino == u.inode.Ino })
	})
	found, err := placement.Place(f.disk, nil, filesOf(waiting), nil)
	if err != nil {
		return nil, nil, err
	}
	maps.Copy(f.report.Placement.Refused, found.Refused)
	verdict, err := audit.CheckAdded(f.disk, f.disk, found.Blocks)
	if err == nil && !verdict.Clean {
		err = fmt.Errorf("%w: %s", errAudit, strings.Join(verdict.Reasons, "; "))
	}
	return found, waiting, err
}
