package journal

import (
	"errors"
	"fmt"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
)

// Rescue is everything that belongs on a disk before anything mounts it: the unsaved blocks of
// files that are already allocated, and the last commit.
//
// It may be carried out again, on what an earlier attempt left: memory does
// not change, and the log says how far that attempt came.
type Rescue struct {
	// Journal is nil where Lost says why the last commit cannot be written, or the
	// file system has none.
	Journal *Journal
	Lost    error
	Holders []Holder // who had handles open
	// Refused says which data of files was left out because its blocks did not check out. It is not lost: it
	// is written by handle after the mount.
	Refused []error
	// Place gives files that wait for an allocation their places in the last commit, so
	// that they are whole with it. It is used only if there is a journal.
	Place bool

	cache *pagecache.Cache
	super *pagecache.Superblock
	mount []byte // identifies the mount
	dev   *pagecache.Device
	mem   ram.Memory
	data  []block
	whole map[addr.Ino]*pagecache.Inode // files whose unsaved data is all in data
	open  []*pagecache.Inode            // regular files that are not among them
}

// block is a piece of a device that is to be written.
type block struct {
	ino  addr.Ino // of its file; 0 for metadata
	disk int64
	phys addr.Phys
	len  int64  // to be written
	used int64  // bytes of it from memory: the rest is zeros
	free bool   // no file has this piece before the transaction
	data []byte // to be written instead of memory, if not nil
}

// Plan reads what belongs on the disk of a file system of the ext family. Parts of the
// file system's structure that memory lacks are read from the disk. It fails only
// if the device or the file system cannot be read at all.
func Plan(c *pagecache.Cache, s *pagecache.Superblock, disk jbd2.Disk) (*Rescue, error) {
	dev, err := c.Device(s, disk)
	if err != nil {
		return nil, fmt.Errorf("plan rescue of %s: %w", s.ID, err)
	}
	r := &Rescue{cache: c, super: s, mount: identity(c, s), dev: dev, mem: c.Kernel().Memory(), whole: make(map[addr.Ino]*pagecache.Inode)}
	r.Journal, err = Of(c, s, dev)
	switch {
	case errors.Is(err, ErrNoJournal):
		r.metadata()
	case err != nil:
		r.Journal, r.Lost = nil, err
		return r, nil
	}
	if r.Journal != nil && r.Journal.Updates() > 0 {
		// They are for the report only.
		r.Holders, _ = r.Journal.holders(c)
	}
	e, err := c.Ext4(s)
	if err != nil {
		return nil, fmt.Errorf("plan rescue of %s: %w", s.ID, err)
	}
	r.files(e)
	return r, nil
}

// metadata takes the unsaved blocks of the device itself: without a journal that is
// how metadata reaches the disk.
func (r *Rescue) metadata() {
	for b, err := range r.dev.Unsaved() {
		if err != nil {
			r.Lost = errors.Join(r.Lost, err)
			continue
		}
		r.data = append(r.data, block{disk: b.Disk, phys: b.Phys, len: b.Len, used: b.Len})
	}
}

const (
	// unplain are the flags of files whose content in memory differs from that on the disk.
	unplain = pagecache.FlagEncrypted | pagecache.FlagVerity | pagecache.FlagDAX
	// firstInode is the lowest number that s_first_ino may have (fs/ext4/ext4.h,
	// EXT4_GOOD_OLD_FIRST_INO): lower numbers are the file system's own inodes.
	firstInode = 11
)

// files takes the unsaved blocks of files that are allocated. Files without a name are left
// out.
func (r *Rescue) files(e *pagecache.Ext4) {
	for i, err := range r.cache.Dirty(r.super) {
		if err != nil || i.Deleted() || !i.HasData() || i.Flags&unplain != 0 || e.Internal(i) {
			continue // the plan of the files reports it
		}
		found := r.dev.Allocated(i)
		r.Refused = append(r.Refused, found.Refused...)
		for _, b := range found.Blocks {
			r.data = append(r.data, block{ino: i.Ino, disk: b.Disk, phys: b.Phys, len: b.Len(), used: min(b.Len(), i.Size-b.Off)})
		}
		// A file that was being truncated needs its size after a check, too.
		if found.Whole && !i.Writing {
			r.whole[i.Ino] = i
		} else if i.Regular() {
			r.open = append(r.open, i)
		}
	}
}

// Report tells what a rescue did.
type Report struct {
	Case     Case
	Sequence uint32 // of the transaction that was written; 0 if there was none
	Blocks   int    // in that transaction
	Revoked  int    // blocks that it revokes
	Data     int64  // bytes of files, and of metadata where there is no journal
	Replayed int    // blocks that the replay of the log wrote
	// Written are the files that are whole on the disk, by inode number.
	Written map[addr.Ino]struct{}
	// Gone are inodes that were being created or deleted when the kernel died, and are free: what
	// memory has of them belongs to no file.
	Gone map[addr.Ino]struct{}
	// AfterMount are files that may lose what memory has to e2fsck, or to a replay of the log by the
	// mount, even if they are in Written.
	AfterMount []AfterMount
	// Placement is nil if none was asked for, or if the rescue did not get that far.
	Placement *Placement
	// Open is how many handles were open. If there were any, the transaction is audited:
	// Audit is the verdict, nil if there was no transaction.
	Open  int
	Audit *audit.Verdict
	// Mended says what was completed or taken back of operations in flight, so that the audit proves it.
	Mended []string
	// Check says why the file system must be checked before it is mounted; empty
	// if it need not be.
	Check string
	// Shared says why the mount will wait to see that no other machine has the file system
	// mounted (MMP), which takes most of a minute; empty if it will not.
	Shared string
	Steps  []Step
}

// Step is a part of a rescue.
type Step struct {
	Name string
	Took time.Duration
}

// CommittedError says that a rescue failed after its commit point: all of the last
// commit is in the log, and a mount replays it. What the report says about files holds, so
// that their data can be written as if nothing had failed.
type CommittedError struct {
	Err error
	// Uncertain says that the disk failed in such a way that the commit may or may not be in
	// the log. Written is empty then.
	Uncertain bool
}

func (e *CommittedError) Error() string {
	if e.Uncertain {
		return fmt.Sprintf("the last commit may be in the log or not, and the mount replays it if it is: %v", e.Err)
	}
	return fmt.Sprintf("the last commit is in the log, and the mount replays it: %v", e.Err)
}

func (e *CommittedError) Unwrap() error { return e.Err }

// Finish carries the rescue out, and then replays the whole log. A failure before
// the transaction is committed leaves the disk as an ordinary crash does: nothing of
// memory may be written to its files then. A failure after that is a *CommittedError,
// and the report is as good as without it.
func (r *Rescue) Finish(disk jbd2.Disk) (*Report, error) {
	f := r.finisher(disk, &Report{})
	err := r.Lost
	if err == nil && r.Journal == nil {
		err = f.plain()
	} else if err == nil {
		err = f.journal()
	}
	if err == nil {
		err = f.giveUpMMP()
	}
	if err == nil {
		return f.report, nil
	}
	if f.committed {
		uncertain := errors.Is(err, jbd2.ErrUncertain)
		if uncertain {
			f.report.Written = nil
		}
		err = &CommittedError{Err: err, Uncertain: uncertain}
	}
	return f.report, fmt.Errorf("finish the last commit of %s: %w", r.super.ID, err)
}

// finisher is a rescue under way.
type finisher struct {
	*Rescue
	disk      jbd2.Disk
	report    *Report
	committed bool         // a recovery finds all of the last commit in the log, or may find it
	memory    []byte       // identifies what memory has of the last commit
	proven    bool         // an earlier attempt has committed it, and nothing else need be done for it
	released  []addr.Block // blocks that mending has freed
	placed    placed
	fills     []block      // see fillBare
	sound     bool         // the audit has proven all of the transaction
	torn      []audit.Slot // inodes that memory has with a wrong checksum
	resized   map[addr.Ino]struct{}
	// remembered and recovered are what every audit of a rescue reads: what memory has, and the
	// disk as a recovery leaves it without the last commit, from when it is first needed.
	remembered audit.Memory
	recovered  *change
}

func (r *Rescue) finisher(disk jbd2.Disk, report *Report) *finisher {
	f := &finisher{Rescue: r, disk: disk, report: report}
	f.remembered = f.remember()
	return f
}

func (f *finisher) step(name string, do func() error) error {
	begin := time.Now()
	err := do()
	f.report.Steps = append(f.report.Steps, Step{name, time.Since(begin)})
	return err
}

// plain is for a file system without a journal. Nothing orders the writes there, so
// after a crash the file system needs a check.
func (f *finisher) plain() error {
	f.report.Check = "it has no journal"
	err := f.step("audit", func() error {
		c, err := f.bare()
		if err != nil {
			return err
		}
		where := treesOn(c.before, c.blocks)
		if err := f.midUpdate(where, false); err != nil {
			return err
		}
		f.fillBare(c, where)
		return nil
	})
	if err != nil {
		return err
	}
	return f.step("blocks", func() error { return f.write(nil) })
}

func (f *finisher) journal() error {
	var log *jbd2.Log
	var scan *jbd2.Scan
	var t *jbd2.Transaction
	var at jbd2.Start
	err := f.step("scan log", func() (err error) {
		if log, err = jbd2.Open(f.disk); err != nil {
			return err
		}
		if scan, err = log.Scan(); err != nil {
			return err
		}
		if err = f.forget(log, scan); err != nil {
			return err
		}
		t, at, err = f.transaction(log, scan)
		return err
	})
	if err != nil {
		return err
	}
	f.committed = t == nil
	if f.report.Open = f.Journal.Updates(); f.report.Open > 0 {
		if err := f.audit(t); err != nil {
			return err
		}
	}
	if f.Place {
		t, at = f.place(log, scan, t, at)
	}
	if t != nil && f.report.Open == 0 {
		if err := f.step("audit", func() error { return f.consistent(t) }); err != nil {
			return err
		}
	}
	if f.report.Case == Finished {
		err = f.step("commit again", func() error { return log.Recommit(scan) })
	}
	if err == nil {
		err = f.step("sizes", func() error { return f.compareSizes(t) })
	}
	if err == nil {
		err = f.step("blocks", func() error { return f.write(logged(scan, t)) })
	}
	if err == nil && f.report.Case == Finished {
		f.havePlaced()
	}
	if err == nil && t != nil {
		nothing := f.committed // nothing of the last commit itself was missing
		if err = f.commit(log, at, t); err == nil {
			f.havePlaced()
		}
		f.committed = f.committed || nothing
	}
	if err == nil {
		err = f.step("replay", func() error {
			stats, err := log.Replay()
			f.report.Replayed += stats.Blocks
			return err
		})
	}
	if !f.committed || !hasInlineData(log.FS) {
		return err
	}
	return f.step("mend", func() error {
		if err == nil {
			err = f.mend(logged(scan, t))
		}
		if err != nil {
			f.mendLater(logged(scan, t))
		}
		return err
	})
}

// transaction returns the merged transaction, or nil if there is none to be written.
func (f *finisher) transaction(log *jbd2.Log, scan *jbd2.Scan) (*jbd2.Transaction, jbd2.Start, error) {
	var written []addr.Block
	var err error
	if f.Journal.Committing != nil {
		if written, err = f.Journal.writtenRevokes(log, f.dev); err != nil {
			return nil, jbd2.Start{}, err
		}
	}
	t, err := f.Journal.merge(log, scan, written)
	if err != nil {
		return nil, jbd2.Start{}, err
	}
	f.memory = f.identify(t)
	done, err := finished(log, scan, t)
	if err == nil && (done || !scan.Empty) {
		// With what was mended or placed, the transaction in the log differs from memory.
		var marked bool
		marked, err = f.marked(log, scan)
		done = done || marked
	}
	if err != nil {
		return nil, jbd2.Start{}, err
	}
	if done {
		f.report.Case = Finished
		return nil, jbd2.Start{}, nil
	}
	var at jbd2.Start
	f.report.Case, at, err = f.Journal.fit(scan)
	if scan.Empty && (err != nil || f.Journal.Committing != nil && f.report.Case != Committing) {
		done, looked := f.marked(log, scan)
		if looked == nil && done {
			f.report.Case = Finished
			return nil, jbd2.Start{}, nil
		}
		err = errors.Join(err, looked)
	}
	if err != nil {
		return nil, at, err
	}
	if f.report.Case == Nothing || len(t.Blocks)+len(t.Revokes) == 0 {
		return nil, at, nil
	}
	// The log's time must not go back: a recovery tells old blocks by it.
	t.Time = time.Now()
	if n := len(scan.Transactions); n > 0 && scan.Transactions[n-1].Time.After(t.Time) {
		t.Time = scan.Transactions[n-1].Time
	}
	return t, at, nil
}

// commit appends the transaction to the log. If it does not fit, the log is
// replayed first.
func (f *finisher) commit(log *jbd2.Log, at jbd2.Start, t *jbd2.Transaction) error {
	var pending *jbd2.Pending
	err := f.step("append", func() (err error) {
		pending, err = log.Append(at, t)
		if !errors.Is(err, jbd2.ErrNoRoom) {
			return err
		}
		at, stats, err := log.MakeRoom()
		f.report.Replayed += stats.Blocks
		if err != nil {
			return err
		}
		pending, err = log.Append(at, t)
		return err
	})
	if err != nil {
		return err
	}
	err = f.step("commit", pending.Commit)
	if f.committed = err == nil || errors.Is(err, jbd2.ErrUncertain); !f.committed {
		return err
	}
	f.report.Sequence, f.report.Blocks, f.report.Revoked = uint32(pending.Sequence), len(t.Blocks), len(t.Revokes)
	return err
}

// logged returns the blocks that a replay writes from the log.
func logged(scan *jbd2.Scan, t *jbd2.Transaction) map[addr.Block]struct{} {
	out := make(map[addr.Block]struct{})
	for _, b := range scan.Newest() {
		out[b.Home] = struct{}{}
	}
	if t != nil {
		for _, b := range t.Blocks {
			out[b.Home] = struct{}{}
		}
	}
	return out
}
