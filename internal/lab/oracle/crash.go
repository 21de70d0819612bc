package oracle

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"

	"understudy.dev/understudy/internal/lab/oracle/page"
	"understudy.dev/understudy/internal/lab/oracle/script"
	"understudy.dev/understudy/internal/live/partition"
)

// disk is the serial number of the guest's disk.
const disk = "disk"

// Crashed is what a guest left behind, and what its disk must hold in the end.
type Crashed struct {
	Case
	Dir  string
	RAM  string // path of the memory
	Disk string // path of the disk, as the crash left it

	Threads []Thread
	Root    script.Stat // of the top directory; only its mtime counts

	remade *remade // of a rescue that makes again what was not committed
	ran    *ran    // instead of threads, if a program was the workload

	// What is known of the instant of the crash.
	Ops       int  // reported, of all threads
	InSync    bool // a syncfs(2) was in progress
	InCommit  bool // the journal's thread waited for the disk shortly before
	Writeback int  // KiB under writeback shortly before
}

// Thread is what one thread did.
type Thread struct {
	Before *script.Script // after all that was reported
	// Pending is the operation that it had begun and not reported, and After the tree if
	// that was done; the times that it sets are not known. Both are nil if there is none.
	Pending *script.Op
	After   *script.Script
}

// work returns what the guest of a case is told to do.
func (c Case) work() page.Work {
	r := rand.New(rand.NewPCG(c.Seed, 2))
	w := page.Work{
		Mount: page.Mount{Disk: disk, Type: c.Config.Type, Options: c.Config.Options},
		Seed:  c.Seed, Threads: 1 + r.IntN(4), Features: c.Config.Features, Drop: r.IntN(2) == 0,
		Millis: 50 + r.IntN(1<<(8+r.IntN(5))), Ops: 200 + r.IntN(1<<(8+r.IntN(4))), Panic: c.Crash != Kill && c.Crash != Clean, Unmount: c.Crash == Clean,
		// Now and then the kernel writes back by itself.
		Sysctls: map[string]string{
			"vm/dirty_writeback_centisecs": fmt.Sprint(10 << r.IntN(7)),
			"vm/dirty_expire_centisecs":    fmt.Sprint(20 << r.IntN(9)),
		},
		Full: c.Config.Full, Grow: c.Config.Grow,
	}
	if w.Grow > 0 {
		w.GrowAt = rand.New(rand.NewPCG(c.Seed, 4)).IntN(w.Ops)
	}
	switch c.Crash {
	case Busy:
		w.Threads = page.Threads
	case Commit:
		w.Sync, w.SyncMicros, w.Pieces = true, r.IntN(20000), true
		w.Commit = !c.Config.NoJournal && !c.Config.remakes() // it looks for jbd2
	case Writeback:
		w.Sync, w.Writeback, w.Pieces = true, 4+r.IntN(100), true
		w.Sysctls["vm/dirty_expire_centisecs"] = "360000"
	case Kill:
		w.Sync, w.SyncMicros = r.IntN(2) == 0, r.IntN(20000)
	}
	return w
}

// Run lets the case's guest work and die; what it leaves is in dir, which must be on a
// tmpfs.
func (c Case) Run(ctx context.Context, dir string) (*Crashed, error) {
	if c.Program != nil {
		return c.runProgram(ctx, dir)
	}
	image := filepath.Join(dir, "disk.img")
	w := c.work()
	format := func() error { return c.format(image) }
	disks := []partition.Device{partition.Disk{Name: disk, Image: image}}
	if c.Config.Outside {
		disks = append(disks, partition.Disk{Name: "journal", Image: journalOf(image)})
	}
	g, err := c.boot(ctx, page.Running, format, dir, "work", page.Order{Work: &w}, disks...)
	if err != nil {
		return nil, err
	}
	defer g.release()
	err = c.drive(ctx, g)
	g.end()
	if err != nil {
		return nil, err
	}
	out := &Crashed{Case: c, Dir: dir, RAM: g.Spec.RAMPath(), Disk: image}
	return out, out.learn(g.page, w)
}

// drive brings a guest that is at work to its end. A kernel that dies earlier than it was
// told to counts as dead, too.
func (c Case) drive(ctx context.Context, g *guest) error {
	if c.Crash == Commit || c.Crash == Writeback {
		if err := g.slow(ctx); err != nil {
			return err
		}
	}
	g.page.Store(page.Go, 1)
	switch c.Crash {
	case Clean:
		return g.await(ctx, page.Ended, endLimit)
	case Kill:
		if err := g.await(ctx, page.Crashing, endLimit); !errors.Is(err, errDied) {
			return err
		}
		return nil
	}
	return g.awaitPanic(ctx)
}

// slow throttles writes to the disk from now on, so that commits and writeback take long.
// The image belongs not to the PCI device but to the virtio device behind it.
func (g *guest) slow(ctx context.Context) error {
	return g.QMP.Execute(ctx, "block_set_io_throttle", map[string]any{
		"id": "/machine/peripheral/" + partition.Disk{Name: disk}.QDev() + "/virtio-backend", "bps": 0, "bps_rd": 0, "bps_wr": 4 << 20, "iops": 0, "iops_rd": 0, "iops_wr": 150,
	}, nil)
}

// learn brings the model to the state that the guest reported.
func (c *Crashed) learn(p page.Page, w page.Work) error {
	c.InSync = p.Load(page.SyncBegun) != 0 && p.Load(page.SyncEnded) == 0
	c.InCommit = p.Load(page.InCommit) != 0
	c.Writeback = int(p.Load(page.Writeback))
	c.Root.Sec = int64(p.Load(page.RootSec)) | int64(p.Load(page.RootSecHigh))<<32
	c.Root.Nsec = p.Load(page.RootNsec)
	for i := range w.Threads {
		area := p.Area(i)
		begun, done, err := area.Progress()
		if err != nil {
			return fmt.Errorf("thread %d: %w", i, err)
		}
		c.Ops += done
		var t Thread
		if t.Before, err = follow(area, script.New(w.Seed, i, w.Features, true), done); err != nil {
			return fmt.Errorf("thread %d: %w", i, err)
		}
		if begun > done {
			if t.After, err = follow(area, script.New(w.Seed, i, w.Features, true), done); err != nil {
				return err
			}
			op := t.After.Next()
			t.Pending = &op
			if err := t.After.Apply(op, nil); err != nil {
				return err
			}
		}
		c.Threads = append(c.Threads, t)
	}
	return nil
}

// follow applies the first operations of a script, with what the guest reported of them.
func follow(area page.Area, s *script.Script, done int) (*script.Script, error) {
	for n := range done {
		stats, err := area.Reported(n)
		if err != nil {
			return nil, err
		}
		op := s.Next()
		if len(stats) != len(op.Touch) {
			return nil, fmt.Errorf("%v: %d files reported", op, len(stats))
		}
		if err := s.Apply(op, stats); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// copyDisk copies a disk image, holes and all.
func copyDisk(from, to string) error { return copySparse(from, to, diskSize) }

// keepFiles copies what is needed to look into a case to a directory that stays.
func keepFiles(from, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() || slices.Contains([]string{"walk.ram", "walk.page"}, e.Name()) {
			continue
		}
		if err := copySparse(filepath.Join(from, e.Name()), filepath.Join(dir, e.Name()), info.Size()); err != nil {
			return err
		}
	}
	return nil
}
