package morgue

import (
	"errors"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/inventory"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
)

// Remains are the unsaved files of one file system, and its last commit.
type Remains struct {
	Cache *pagecache.Cache
	Super *pagecache.Superblock
	Plan  *salvage.Plan
	// Placed are the files of the plan to which Finish has given their places on the disk, as
	// they were planned. They are no longer in the plan.
	Placed []salvage.File

	// Wait makes files without a place wait for a mount.
	Wait bool

	rescue *journal.Rescue // of Finish
	did    *journal.Report // likewise

	paths map[file]string // of the plan's files, once Refusal was asked for one
}

// file identifies a file.
type file struct {
	inode      uint64
	generation uint32
}

func refusal(ino addr.Ino, path, reason string) takeover.Refusal {
	r := takeover.Refusal{Inode: uint64(ino), Reason: reason}
	r.Path, r.PathBase64 = inventory.Text(path)
	return r
}

// LeftOut returns what is not in a plan.
func LeftOut(p *salvage.Plan) []takeover.Refusal {
	var all []takeover.Refusal
	for _, refused := range p.Refused {
		r := refusal(refused.Inode, refused.Path, refused.Why())
		r.Pages = refused.Pages
		all = append(all, r)
	}
	for _, fault := range p.Faults {
		all = append(all, takeover.Refusal{Reason: fault.Error()})
	}
	return all
}

// Finish carries out the last commit on an image. Files that it has written are removed from
// the plan, and what a check of the file system may lose is added to it. If the commit is
// refused, the plan is given up, and the error is a *takeover.GivenUp: no file gets only a part of what
// it was to be. What fails after the commit is added to the plan's faults. Any other error
// means that the image could not be read.
//
// Finish writes nothing to XFS and btrfs: the mount replays what their logs have, and the plan
// has what the logs lack.
func (r *Remains) Finish(image takeover.Image) (takeover.Commit, error) {
	if !r.Super.HasBuffers() {
		return takeover.Commit{Case: r.Super.Type + ": the mount replays its log, and what that lacks is written after it"}, nil
	}
	rescue, err := journal.Plan(r.Cache, r.Super, image)
	if err != nil {
		return takeover.Commit{}, err
	}
	rescue.Place = !r.Wait
	did, err := rescue.Finish(image)
	r.rescue, r.did = rescue, did
	c := commitReport(rescue, did)
	var committed *journal.CommittedError
	if errors.As(err, &committed) {
		// The mount replays the commit: the files get their data, and the report says what
		// failed.
		r.Plan.Faults = append(r.Plan.Faults, err)
	} else if err != nil {
		bytes, files := r.Plan.Report().Bytes, r.Plan.GiveUp()
		lost := &takeover.GivenUp{Err: fmt.Errorf("%w; %d files with %d unsaved bytes are as a crash leaves them", err, len(files), bytes)}
		for _, f := range files {
			lost.Files = append(lost.Files, refusal(f.Ino, f.Path, "it is as a crash leaves it, without the last commit"))
		}
		return c, lost
	}
	r.takePlaced(did)
	r.Plan.Remove(did.Written)
	r.Plan.Remove(did.Gone)
	for _, m := range did.AfterMount {
		r.Plan.Restore(r.Cache, r.Super, m)
	}
	return c, nil
}

// PlaceChecked gives files their places on an image that was checked after Finish, and that is
// used only as a whole. Files that it has written are removed from the plan. After an error the
// image must not be used.
func (r *Remains) PlaceChecked(image takeover.Image, c *takeover.Commit) error {
	p, err := r.rescue.PlaceChecked(image, r.did)
	c.Placed, c.PlacedBytes, c.Unplaced = len(p.Files), p.Bytes, unplaced(p)
	if err != nil {
		return err
	}
	c.Data += p.Bytes
	r.takePlaced(&journal.Report{Placement: p})
	written := make(map[addr.Ino]struct{}, len(p.Files))
	for _, ino := range p.Files {
		written[ino] = struct{}{}
	}
	r.Plan.Remove(written)
	return nil
}

// takePlaced remembers the files that are placed.
func (r *Remains) takePlaced(did *journal.Report) {
	if did.Placement == nil {
		return
	}
	placed := make(map[addr.Ino]bool, len(did.Placement.Files))
	for _, ino := range did.Placement.Files {
		placed[ino] = true
	}
	for _, f := range r.Plan.Files {
		if placed[f.Ino] {
			r.Placed = append(r.Placed, f)
		}
	}
}

// Size is how many bytes of staging Gather fills.
func (r *Remains) Size() int64 { return r.Plan.StagingSize() }

// Gather puts the unsaved bytes into staging and says whose they are.
func (r *Remains) Gather(staging []byte) (takeover.Gathered, error) {
	p := r.Plan
	g := takeover.Gathered{Used: p.StagingSize(), Bytes: p.Report().Bytes}
	g.Refused = LeftOut(p)
	if err := p.Gather(staging); err != nil {
		return g, err
	}
	var err error
	g.Files, g.Attrs, err = Files(p, false)
	return g, err
}

// Refusal is what a side could not do to a file of the plan.
func (r *Remains) Refusal(f wire.Failure) takeover.Refusal {
	if r.paths == nil {
		r.paths = make(map[file]string)
		for i := range r.Plan.Files {
			planned := &r.Plan.Files[i]
			r.paths[file{uint64(planned.Ino), planned.Generation}] = planned.Path
		}
	}
	return refusal(addr.Ino(f.Inode), r.paths[file{f.Inode, f.Generation}], f.Reason)
}

// Names returns the names that the dead kernel had for the inodes which a check has found
// without a name, or with too many.
func (r *Remains) Names(found *wire.Check) wire.NameRequest {
	var wanted []addr.Ino
	for _, ino := range slices.Concat(found.Lost, found.Surplus) {
		wanted = append(wanted, addr.Ino(ino))
	}
	files, dirs := salvage.Unfinished(r.Cache, r.Super, wanted)
	request := wire.NameRequest{Check: found}
	for _, f := range files {
		named := wire.Named{Inode: uint64(f.Ino), Generation: f.Generation, Links: f.NLink, New: f.New, Dir: f.Dir}
		for _, at := range f.Paths {
			named.Paths = append(named.Paths, []byte(at))
		}
		request.Files = append(request.Files, named)
	}
	for _, dir := range dirs {
		request.Dirs = append(request.Dirs, []byte(dir))
	}
	return request
}
