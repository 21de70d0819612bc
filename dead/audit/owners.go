package audit

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"slices"

	"understudy.dev/understudy/dead/addr"
)

// run is a half-open range of the disk: blocks, or clusters.
type run struct{ from, to addr.Block }

// gather collects the clusters that the inodes that are touched own.
func (c *checker) gather() error {
	c.oldRuns, c.newRuns = slices.Grow(c.oldRuns, len(c.list)), slices.Grow(c.newRuns, len(c.list))
	for _, i := range c.all() {
		for at, s := range [...]*state{i.old, i.new} {
			if s == nil {
				continue
			}
			into := [...]*[]run{&c.oldRuns, &c.newRuns}[at]
			var err error
			if *into, err = s.clusters(*into, ratio(&c.new.super)); err != nil {
				return fmt.Errorf("inode %d: %w", i.number, err)
			}
		}
	}
	return nil
}

// clusters appends the clusters that an inode owns to out. Extents may share a cluster if they
// share it in the file, too (fs/ext4/extents.c, get_implied_cluster_alloc).
func (s *state) clusters(out []run, ratio uint64) ([]run, error) {
	for _, b := range s.file.nodes {
		out = append(out, run{b / addr.Block(ratio), b/addr.Block(ratio) + 1})
	}
	nodes, end := len(out), uint64(0) // cluster of the file behind the last extent
	for _, x := range s.file.extents {
		if x.logical%ratio != uint64(x.start)%ratio {
			return out, fmt.Errorf("its block %d is mapped to block %d, which is at another offset in its cluster", x.logical, x.start)
		}
		r := run{x.start / addr.Block(ratio), (x.start+addr.Block(x.length)-1)/addr.Block(ratio) + 1}
		if len(out) > nodes && x.logical/ratio+1 == end {
			if out[len(out)-1].to != r.from+1 {
				return out, fmt.Errorf("the cluster of its block %d is in two places", x.logical)
			}
			r.from++
		}
		end = (x.logical+x.length-1)/ratio + 1
		if r.from < r.to {
			out = append(out, r)
		}
	}
	return out, nil
}

// count counts the clusters that were seen. Without bigalloc the mapping's own count is enough.
func (s *state) count(ratio uint64) error {
	if ratio == 1 {
		return nil
	}
	owned, err := s.clusters(nil, ratio)
	s.owned = 0
	for _, r := range owned {
		s.owned += uint64(r.to - r.from)
	}
	return err
}

// checkOwners checks that the block bitmaps differ in exactly the blocks that inodes gained
// and lost, and that each block has one owner. Blocks that are gained must have been free
// before, so that no untouched inode owns them.
func (c *checker) checkOwners() {
	if !c.note(c.gather()) {
		return
	}
	if err := merge(&c.oldRuns); err != nil {
		c.note(asItWas(err))
		return
	}
	if !c.note(merge(&c.newRuns)) {
		return
	}
	flips := make(map[uint32]uint64)
	for r, change := range differences(c.oldRuns, c.newRuns) {
		switch change {
		case taken:
			c.verdict.Touched.Allocated += uint64(r.to - r.from)
		case given:
			c.verdict.Touched.Freed += uint64(r.to - r.from)
		}
		err := c.checkRun(r, change, flips)
		if taken, ok := errors.AsType[*inUseError](err); ok {
			c.exchanged(taken)
		}
		if !c.note(err) {
			return
		}
	}
	for _, group := range sorted(c.groups) {
		before, err := c.old.blockMap(group)
		if !c.note(err) {
			return
		}
		after, err := c.new.blockMap(group)
		if !c.note(err) {
			return
		}
		if n := before.differ(after, uint64(c.new.super.BlockSize)*8); n != flips[group] {
			if !c.note(fmt.Errorf("the block bitmap of group %d changes for %d blocks, but inodes gain or lose %d", group, n, flips[group])) {
				return
			}
		}
	}
}

// inUseError says that inodes take blocks that were not free.
type inUseError struct{ run run }

func (e *inUseError) Error() string {
	return fmt.Sprintf("blocks %d to %d are taken, but the old bitmap had some of them in use", e.run.from, e.run.to-1)
}

// exchanged finds the inode that takes blocks which were in use. An allocation never takes such blocks, not even in
// the transaction that frees them (fs/ext4/mballoc.c, ext4_mb_free_metadata). An operation that exchanges the blocks
// of two files holds the locks of both until it is done (fs/ext4/move_extent.c, ext4_move_extents; ioctl.c,
// swap_inode_boot_loader). If the inode was not locked, it is damage.
func (c *checker) exchanged(e *inUseError) {
	if c.memory.Inodes == nil {
		return
	}
	all, err := c.memory.Inodes()
	if err != nil {
		return
	}
	busy := make(map[addr.Ino]bool)
	for _, k := range all {
		busy[k.Ino] = busy[k.Ino] || k.Busy
	}
	for _, i := range c.all() {
		if i.new == nil || busy[i.number] {
			continue
		}
		owned, err := i.new.clusters(nil, ratio(&c.new.super))
		if err == nil && slices.ContainsFunc(owned, func(r run) bool { return r.from < e.run.to && e.run.from < r.to }) {
			c.verdict.Damaged = fmt.Sprintf("inode %d: %v, and no operation on it was in flight", i.number, e)
			return
		}
	}
}

// checkRun checks that the old and the new bitmaps agree with what became of a run.
func (c *checker) checkRun(r run, change change, flips map[uint32]uint64) error {
	for p := range byGroup(&c.new.super, r) {
		before, err := c.old.blockMap(p.group)
		if err != nil {
			return err
		}
		after, err := c.new.blockMap(p.group)
		if err != nil {
			return err
		}
		switch {
		case !before.all(p.from, p.to, change != taken) && change != taken:
			return foreignf("blocks %d to %d are %s, but before the bitmap had not all of them", p.run.from, p.run.to-1, change)
		case !before.all(p.from, p.to, change != taken):
			return &inUseError{p.run}
		case !after.all(p.from, p.to, change != given):
			return fmt.Errorf("blocks %d to %d are %s, but the new bitmap does not have all of them so", p.run.from, p.run.to-1, change)
		}
		if change != kept {
			flips[p.group] += p.to - p.from
			c.groups[p.group] = struct{}{}
		}
	}
	return nil
}

// merge sorts runs and joins neighbours. None may overlap.
func merge(runs *[]run) error {
	all := *runs
	slices.SortFunc(all, func(a, b run) int { return cmp.Compare(a.from, b.from) })
	out := all[:0]
	for _, r := range all {
		n := len(out)
		switch {
		case n > 0 && r.from < out[n-1].to:
			return fmt.Errorf("block %d is owned twice", r.from)
		case n > 0 && r.from == out[n-1].to:
			out[n-1].to = r.to
		default:
			out = append(out, r)
		}
	}
	*runs = out
	return nil
}

// change is what became of a run.
type change int

const (
	kept change = iota
	taken
	given
)

func (c change) String() string { return [...]string{"kept", "taken", "freed"}[c] }

// differences compares two sorted lists of runs, and yields each piece of them with
// what became of it. It uses the lists up.
func differences(before, after []run) iter.Seq2[run, change] {
	return func(yield func(run, change) bool) {
		for len(before) > 0 || len(after) > 0 {
			var r run
			var what change
			switch {
			case len(after) == 0 || len(before) > 0 && before[0].from < after[0].from:
				r, what = before[0], given
				if len(after) > 0 {
					r.to = min(r.to, after[0].from)
				}
			case len(before) == 0 || after[0].from < before[0].from:
				r, what = after[0], taken
				if len(before) > 0 {
					r.to = min(r.to, before[0].from)
				}
			default:
				r, what = run{before[0].from, min(before[0].to, after[0].to)}, kept
			}
			before, after = cut(before, r.to), cut(after, r.to)
			if !yield(r, what) {
				return
			}
		}
	}
}

// cut removes what lies before a block from a list of runs. It modifies the list.
func cut(runs []run, to addr.Block) []run {
	for len(runs) > 0 && runs[0].from < to {
		if runs[0].to > to {
			runs[0].from = to
			return runs
		}
		runs = runs[1:]
	}
	return runs
}
