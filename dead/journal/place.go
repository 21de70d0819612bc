package journal

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"maps"
	"slices"
	"strings"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/audit"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/placement"
)

// Placement reports what became of the files that had no place yet.
type Placement struct {
	Files []addr.Ino // the files that are whole with it
	Bytes int64      // bytes of these files that were written
	// Refused says why files have no place, by inode number: they are for a kernel to write.
	Refused map[addr.Ino]error
	// Err says why no file has a place; nil if that is not so.
	Err error
}

var (
	errQuotas  = errors.New("quotas are kept in ordinary files, which could not be updated")
	errAudit   = errors.New("the audit found the change inconsistent")
	errRoom    = errors.New("the transaction would not fit into the journal")
	errChecked = errors.New("the file system is to be checked first")
)

// placed is a placement that goes with the transaction.
type placed struct {
	files []addr.Ino
	bytes int64
}

// place gives files that have no place one, in the transaction. If t is nil and a file gets
// a place, a transaction is created. If something prevents that, it is reported, and the
// transaction is returned unchanged.
func (f *finisher) place(log *jbd2.Log, scan *jbd2.Scan, t *jbd2.Transaction, at jbd2.Start) (*jbd2.Transaction, jbd2.Start) {
	p := &Placement{Refused: make(map[addr.Ino]error)}
	f.report.Placement = p
	var with *jbd2.Transaction
	p.Err = f.step("place", func() error {
		if f.report.Case == Finished {
			return f.placedBefore()
		}
		err := f.placeable(log, scan)
		if err == nil && at == (jbd2.Start{}) {
			at, err = f.idle(scan)
		}
		if err == nil {
			with, err = f.placeFiles(log, scan, t)
		}
		return err
	})
	if p.Err != nil || with == nil && f.report.Case != Finished {
		f.placed = placed{}
	}
	if p.Err != nil || with == nil {
		return t, at
	}
	return with, at
}

// placeable says why no file can get a place. If this rescue fails, a mount replays the fast commits: what they
// allocate to a file that was deleted since is free both on the disk and with the last commit.
func (f *finisher) placeable(log *jbd2.Log, scan *jbd2.Scan) error {
	switch {
	case f.report.Check != "":
		return errChecked
	case scan.Fast != (jbd2.FastCommits{}):
		return jbd2.ErrFastCommits
	}
	return f.quotasCounted(log.FS)
}

// quotasCounted says why allocated blocks cannot be counted. Quota files that belong to the file
// system are updated, quota files that are ordinary files are not: if operations were in flight, neither the audit nor a
// check compares what they count.
func (f *finisher) quotasCounted(fs *ext4.FS) error {
	quotas, err := f.cache.Quotas(f.super)
	switch {
	case err != nil || !quotas || fs.Super.ROCompat&ext4.ROCompatQuota != 0:
		return err
	case f.report.Open > 0:
		return fmt.Errorf("%w, and may not count what %d operations in flight did: run quotacheck(8)", errQuotas, f.report.Open)
	}
	return errQuotas
}

// placedBefore finds the files that an earlier attempt has placed: the disk has them exactly as
// memory does. The others are written after the mount.
func (f *finisher) placedBefore() error {
	c, err := f.change(&jbd2.Transaction{})
	if err != nil {
		return err
	}
	waiting, err := f.waiting(c)
	if err != nil {
		return err
	}
	found, err := placement.Place(c.before, nil, filesOf(waiting), nil)
	if err != nil {
		return err
	}
	for _, p := range found.Placed {
		if !p.Same {
			continue
		}
		for waiting[0].inode.Ino != p.File.Ino {
			waiting = waiting[1:]
		}
		data, err := waiting[0].blocksAt(nil, p.Pieces)
		if err != nil {
			return err
		}
		if same, err := f.onDisk(data); err != nil {
			return err
		} else if same {
			f.placed.files = append(f.placed.files, p.File.Ino)
		}
	}
	return nil
}

// onDisk reports whether the disk already has what is to be written.
func (f *finisher) onDisk(data []block) (bool, error) {
	for _, b := range data {
		want, err := f.mem.View(b.phys, int(b.used))
		if err != nil {
			return false, fmt.Errorf("read memory: %w", err)
		}
		got := make([]byte, b.used)
		if _, err := f.disk.ReadAt(got, b.disk); err != nil {
			return false, fmt.Errorf("read disk: %w", err)
		}
		if !bytes.Equal(want, got) {
			return false, nil
		}
	}
	return true, nil
}

// idle returns where a transaction begins in the log if memory has none.
func (f *finisher) idle(scan *jbd2.Scan) (jbd2.Start, error) {
	at := jbd2.Start{Block: scan.End, Sequence: scan.Next}
	e, err := f.cache.Ext4(f.super)
	if err != nil || e.Journal == nil {
		return at, errors.Join(err, ErrNoJournal)
	}
	next := jbd2.TID(e.Journal.CommitSequence) + 1
	ahead := int32(scan.Next - next)
	switch {
	case scan.Empty && (ahead == 0 || ahead == -1): // see Journal.fit
		at.Sequence = next
	case scan.Empty || ahead != 0 || scan.End != jbd2.Pos(f.Journal.Head):
		return at, fmt.Errorf("%w: it goes on with transaction %d at block %d; in memory with %d at block %d", ErrLog, scan.Next, scan.End, next, f.Journal.Head)
	}
	return at, nil
}

// placeFiles returns the transaction with the places of files, or nil if no file got one.
func (f *finisher) placeFiles(log *jbd2.Log, scan *jbd2.Scan, t *jbd2.Transaction) (*jbd2.Transaction, error) {
	if t == nil {
		t = &jbd2.Transaction{Time: time.Now()}
		if n := len(scan.Transactions); n > 0 && scan.Transactions[n-1].Time.After(t.Time) {
			t.Time = scan.Transactions[n-1].Time
		}
	}
	with := *t
	with.Blocks = slices.Clone(t.Blocks)
	c, err := f.change(&with)
	if err == nil && c.grows() {
		err = errGrows
	}
	if err != nil {
		return nil, err
	}
	waiting, err := f.waiting(c)
	if err != nil || len(waiting) == 0 {
		return nil, err
	}
	avoid := slices.Collect(maps.Keys(logged(scan, nil)))
	found, err := placement.Place(c.before, c.blocks, filesOf(waiting), slices.Concat(avoid, with.Revokes, f.released))
	if err != nil {
		return nil, err
	}
	maps.Copy(f.report.Placement.Refused, found.Refused)
	if len(found.Placed) == 0 {
		return nil, nil
	}
	if err := f.confirm(c, found); err != nil {
		return nil, err
	}
	if !fits(log, len(with.Blocks), len(with.Revokes)) {
		return nil, errRoom
	}
	if with.Mark == (jbd2.Mark{}) {
		with.Mark = f.mark(true)
	}
	return &with, f.takePlaced(waiting, found, logged(scan, &with))
}

// confirm audits the whole change together with what was placed, and then makes that a part of the
// transaction. Where the file system has something that the audit of a whole transaction does not
// understand, and nothing was in flight, the transaction is what a kernel commits, and only the
// added blocks are audited.
func (f *finisher) confirm(c *change, found *placement.Result) error {
	all := maps.Clone(c.blocks)
	maps.Copy(all, found.Blocks)
	verdict, err := f.remembered.Check(c.before, all)
	added := err == nil && verdict.Foreign && f.report.Open == 0
	if added {
		verdict, err = c.checkAdded(found.Blocks)
	}
	if err != nil {
		return err
	}
	if !verdict.Clean {
		return fmt.Errorf("%w: %s", errAudit, strings.Join(verdict.Reasons, "; "))
	}
	f.sound = !added
	return c.replaceAll(found.Blocks)
}

// checkAdded audits blocks that are added to a change.
func (c *change) checkAdded(added map[addr.Block][]byte) (audit.Verdict, error) {
	with, err := c.after()
	if err != nil {
		return audit.Verdict{}, err
	}
	return audit.CheckAdded(with, c.before, added)
}

// takePlaced adds the data of placed files to what is written, and drops what was to be written
// of these files before. No recovery may write to the same places.
func (f *finisher) takePlaced(waiting []unplaced, found *placement.Result, logged map[addr.Block]struct{}) error {
	var data []block
	of := make(map[addr.Ino]bool, len(found.Placed))
	next := waiting
	for _, p := range found.Placed {
		for next[0].inode.Ino != p.File.Ino {
			next = next[1:]
		}
		of[p.File.Ino] = true
		f.placed.files = append(f.placed.files, p.File.Ino)
		var err error
		if data, err = next[0].blocksAt(data, p.Pieces); err != nil {
			return err
		}
	}
	size := int64(f.super.BlockSize)
	for _, b := range data {
		f.placed.bytes += b.used
		for at := b.disk; at < b.disk+b.len; at += size {
			if _, there := logged[addr.Block(at/size)]; there {
				return fmt.Errorf("%w: block %d has data of inode %d, and is in the journal", ErrDamaged, at/size, b.ino)
			}
		}
	}
	for _, b := range f.data {
		if !of[b.ino] {
			data = append(data, b)
		}
	}
	f.data = data
	return nil
}

// havePlaced reports the placed files as whole, once the transaction is committed.
func (f *finisher) havePlaced() {
	for _, ino := range f.placed.files {
		f.report.Written[ino] = struct{}{}
	}
	if p := f.report.Placement; p != nil {
		p.Files, p.Bytes = f.placed.files, f.placed.bytes
	}
}

// fits reports whether a transaction has room in an empty log.
func fits(log *jbd2.Log, blocks, revokes int) bool {
	size := int(log.Super.BlockSize)
	need := blocks + blocks/((size-64)/16) + revokes/((size-32)/8) + 8
	return need < int(log.Super.Last-log.Super.First)
}

// numbers adds numbers to a hash.
func numbers(h hash.Hash, of ...uint64) {
	for _, n := range of {
		h.Write(binary.LittleEndian.AppendUint64(nil, n))
	}
}

// identity tells a mount from any other.
func identity(c *pagecache.Cache, s *pagecache.Superblock) []byte {
	h := sha256.New()
	h.Write(s.UUID[:])
	numbers(h, uint64(s.Addr))
	if e, err := c.Ext4(s); err == nil {
		numbers(h, e.Super.MountTime)
		if e.Journal != nil {
			numbers(h, uint64(e.Journal.CommitSequence), uint64(e.Journal.NextTransaction))
		}
	}
	return h.Sum(nil)
}

// identify returns what tells this rescue's transaction from any other: the mount, and the content of
// the transaction in memory.
func (f *finisher) identify(t *jbd2.Transaction) []byte {
	h := sha256.New()
	h.Write(f.mount)
	numbers(h, uint64(f.Journal.Head), uint64(len(t.Blocks)))
	for _, b := range t.Blocks {
		numbers(h, uint64(b.Home), uint64(ext4.CRC32C(0, b.Data)))
	}
	for _, b := range t.Revokes {
		numbers(h, uint64(b))
	}
	return h.Sum(nil)
}

// mark returns the mark of the transaction. sound says that it was proven, and that nothing is
// needed after the mount.
func (f *finisher) mark(sound bool) jbd2.Mark {
	name := "understudy transaction 1"
	if !sound {
		name = "understudy transaction 1, to be checked"
	}
	sum := sha256.Sum256(append([]byte(name), f.memory...))
	return jbd2.Mark(sum[:])
}

// Rescued reports whether a rescue from this memory has run on a disk, and nothing has used the
// journal since: the last transaction of the log has the rescue's mark.
func Rescued(c *pagecache.Cache, s *pagecache.Superblock, disk jbd2.Disk) (bool, error) {
	r, err := Plan(c, s, disk)
	if err != nil || r.Journal == nil {
		return false, err
	}
	log, err := jbd2.Open(disk)
	if err != nil {
		return false, err
	}
	scan, err := log.Scan()
	if err != nil {
		return false, err
	}
	f := r.finisher(disk, &Report{})
	if _, _, err := f.transaction(log, scan); f.memory == nil {
		return false, err
	}
	return f.marked(log, scan)
}

// marked reports whether the log already has the transaction, by its mark.
func (f *finisher) marked(log *jbd2.Log, scan *jbd2.Scan) (bool, error) {
	which, err := log.Marked(scan, f.mark(true), f.mark(false))
	f.proven = which == 0
	return which >= 0, err
}
