package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/journal"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
	"understudy.dev/understudy/internal/takeover/supervisor"
)

// morgue joins the dead column to a takeover.
type morgue struct {
	memory ram.Memory

	mu     sync.Mutex     // of Prepare
	kernel *kernel.Kernel // nil until it is found
}

func openMorgue(path string) (supervisor.Morgue, error) {
	m, err := ram.OpenFile(path)
	if err != nil {
		return nil, err
	}
	return &morgue{memory: m}, nil
}

func (m *morgue) Close() error {
	if m.kernel != nil {
		_ = m.kernel.Keep() // or else it is learned again
	}
	return m.memory.Close()
}

// Prepare finds the kernel, unless the one found before is still there.
func (m *morgue) Prepare(context.Context) error {
	_, err := m.known()
	return err
}

// known is the kernel, found if need be. Peers are read beside file systems.
func (m *morgue) known() (*kernel.Kernel, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.kernel != nil && m.kernel.StillThere() == nil {
		return m.kernel, nil
	}
	k, err := kernel.Find(m.memory, knownBuilds()...)
	m.kernel = k
	return k, err
}

// Examine takes the file system of the image out of the dead kernel's mounts.
func (m *morgue) Examine(image takeover.Image) (takeover.Remains, error) {
	k, err := m.known()
	if err != nil {
		return nil, fmt.Errorf("find kernel: %w", err)
	}
	b := make([]byte, ext4.SuperSize)
	if _, err := image.ReadAt(b, ext4.SuperOffset); err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	on, err := ext4.ParseSuper(b)
	if err != nil {
		return nil, err
	}
	c, err := pagecache.Open(k)
	if err != nil {
		return nil, err
	}
	s, err := c.Superblock(on.UUID)
	if err != nil {
		return nil, err
	}
	r := &remains{cache: c, super: s}
	if r.plan, err = salvage.Of(c, s); err != nil {
		return nil, err
	}
	if err := r.plan.Check(image); err != nil {
		return nil, err
	}
	r.rescue, err = journal.Plan(c, s, image)
	return r, err
}

// remains are a plan and a rescue as a takeover sees them.
type remains struct {
	cache  *pagecache.Cache
	super  *pagecache.Superblock
	plan   *salvage.Plan
	rescue *journal.Rescue
}

// Finish also takes what it settled out of the plan.
func (r *remains) Finish(image takeover.Image) (takeover.Commit, error) {
	did, err := r.rescue.Finish(image)
	c := commitReport(r.rescue, did)
	if err == nil {
		settle(r.plan, r.cache, r.super, did)
		return c, nil
	}
	lost := r.plan.Report()
	r.plan.GiveUp()
	return c, fmt.Errorf("%w; %d files with %d unsaved bytes are as a crash leaves them", err, lost.Files, lost.Bytes)
}

// settle takes what a rescue did out of a plan, and puts into it what that leaves.
func settle(p *salvage.Plan, c *pagecache.Cache, s *pagecache.Superblock, did *journal.Report) {
	p.Settle(did.Settled)
	for _, m := range did.Moved {
		p.Restore(c, s, salvage.Restored(m))
	}
}

func (r *remains) Gather(staging []byte) (takeover.Gathered, error) {
	p := r.plan
	g := takeover.Gathered{Used: p.StagingSize(), Bytes: p.Report().Bytes}
	for _, refusal := range p.Refused {
		g.Refused = append(g.Refused, takeover.Refusal{
			What: fmt.Sprintf("inode %d", refusal.Inode), Count: int(max(1, refusal.Pages)), Reason: refusal.Error(),
		})
	}
	for _, fault := range p.Faults {
		g.Refused = append(g.Refused, takeover.Refusal{What: "walk", Count: 1, Reason: fault.Error()})
	}
	if err := p.Gather(staging); err != nil {
		return g, err
	}
	for i := range p.Files {
		f, err := linkFile(&p.Files[i])
		if err != nil {
			return g, err
		}
		g.Files = append(g.Files, f)
	}
	return g, nil
}

func (r *remains) Names(found *wire.Check) wire.NameRequest {
	return namesFor(r.cache, r.super, found)
}

// namesFor is what the dead kernel had as the names of what a check has found
// without, or with too many.
func namesFor(c *pagecache.Cache, s *pagecache.Superblock, found *wire.Check) wire.NameRequest {
	var wanted []addr.Ino
	for _, ino := range slices.Concat(found.Lost, found.Surplus) {
		wanted = append(wanted, addr.Ino(ino))
	}
	files, dirs := salvage.Unfinished(c, s, wanted)
	r := wire.NameRequest{Check: found}
	for _, f := range files {
		named := wire.Named{Inode: uint64(f.Ino), Generation: f.Generation, Links: f.NLink, New: f.New, Dir: f.Dir}
		for _, at := range f.Paths {
			named.Paths = append(named.Paths, []byte(at))
		}
		r.Files = append(r.Files, named)
	}
	for _, dir := range dirs {
		r.Dirs = append(r.Dirs, []byte(dir))
	}
	return r
}

// linkFile is a planned file as it is sent to the agent.
func linkFile(f *salvage.File) (wire.File, error) {
	out := wire.File{
		Inode: uint64(f.Ino), Generation: f.Generation, Size: f.Size,
		Atime: linkTime(f.Atime), Mtime: linkTime(f.Mtime), Cut: f.Cut,
	}
	for i := range f.Runs {
		run := &f.Runs[i]
		if run.Off%512 != 0 || !run.Direct && run.End != f.Size && run.Len()%512 != 0 {
			return out, errors.New("a run is not made of whole sectors")
		}
		out.Runs = append(out.Runs, wire.Run{Off: run.Off, Len: run.WriteLen(), Staged: run.Staged})
	}
	for _, h := range f.Holes {
		out.Holes = append(out.Holes, wire.Range{Off: h.Off, Len: h.Len()})
	}
	return out, nil
}

func linkTime(t time.Time) wire.Time {
	return wire.Time{Sec: t.Unix(), Nsec: uint32(t.Nanosecond())}
}
