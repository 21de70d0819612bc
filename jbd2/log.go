package jbd2

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"understudy/addr"
	"understudy/ext4"
)

// Disk is a disk, or an image of one, with a file system at offset 0. Reads see
// earlier writes; Sync returns when what was written is durable.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// ErrNoJournal says that a file system has no journal.
var ErrNoJournal = errors.New("the file system has no journal")

// ExternalError says that the journal is on a device of its own.
type ExternalError struct {
	UUID   addr.UUID // of the journal
	Device uint32    // s_journal_dev, as the kernel encodes it; 0 if unknown
}

func (e *ExternalError) Error() string {
	return fmt.Sprintf("the journal is on another device, of UUID %v", e.UUID)
}

// Log is the log of a file system.
type Log struct {
	Super Super    // as it was read or last written
	FS    *ext4.FS // its superblock too

	disk Disk
	runs []ext4.Run // where the journal lies; its first run has block 0
}

// Open finds the journal of a file system and reads its superblock. It fails
// with ErrNoJournal, an *ExternalError, a *FeatureError, or what ext4.Open
// returns.
func Open(d Disk) (*Log, error) {
	fs, err := ext4.Open(d)
	if err != nil {
		return nil, err
	}
	switch s := &fs.Super; {
	case s.Compat&ext4.CompatHasJournal == 0:
		return nil, fmt.Errorf("open journal: %w", ErrNoJournal)
	case s.JournalInode == 0:
		return nil, fmt.Errorf("open journal: %w", &ExternalError{s.JournalUUID, s.JournalDevice})
	case s.JournalDevice != 0:
		return nil, errors.New("open journal: the file system has both a journal inode and a journal device")
	}
	l := &Log{FS: fs, disk: d}
	if err := l.load(); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	return l, nil
}

// load reads the journal's inode, superblock and place.
func (l *Log) load() error {
	inode, err := l.FS.Inode(l.FS.Super.JournalInode)
	if err != nil {
		return err
	}
	if inode.Links == 0 || !inode.IsRegular() || inode.Flags&ext4.InodeEncrypted != 0 {
		return fmt.Errorf("inode %d is no journal: mode %#o, %d links, flags %#x", inode.Number, inode.Mode, inode.Links, inode.Flags)
	}
	first, err := l.run(inode, 0)
	if err != nil {
		return err
	}
	b, err := l.FS.Block(first.Physical)
	if err != nil {
		return err
	}
	size := l.FS.Super.BlockSize
	if l.Super, err = parseSuper(b, size, inode.Size/uint64(size)); err != nil {
		return fmt.Errorf("superblock: %w", err)
	}
	return l.locate(inode)
}

// run maps blocks of the journal.
func (l *Log) run(inode *ext4.Inode, logical uint32) (ext4.Run, error) {
	r, err := l.FS.Map(inode, logical)
	if err == nil && r.Unwritten {
		err = fmt.Errorf("block %d of the journal was never written", logical)
	}
	return r, err
}

// locate maps the whole journal, and wants each block in one place only.
func (l *Log) locate(inode *ext4.Inode) error {
	end := uint64(l.Super.Length)
	for at := uint64(0); at < end; {
		r, err := l.run(inode, uint32(at))
		if err != nil {
			return err
		}
		r.Length = uint32(min(uint64(r.Length), end-at))
		l.runs = append(l.runs, r)
		at += uint64(r.Length)
	}
	sorted := slices.Clone(l.runs)
	slices.SortFunc(sorted, func(a, b ext4.Run) int { return cmp.Compare(a.Physical, b.Physical) })
	for i := 1; i < len(sorted); i++ {
		if before := sorted[i-1]; before.Physical+addr.Block(before.Length) > sorted[i].Physical {
			return fmt.Errorf("blocks %d and %d of the journal are both at block %d", before.Logical, sorted[i].Logical, sorted[i].Physical)
		}
	}
	return nil
}

// Where returns the block of the disk that a block of the journal is.
func (l *Log) Where(p Pos) (addr.Block, error) {
	i, found := slices.BinarySearchFunc(l.runs, uint32(p), func(r ext4.Run, p uint32) int {
		switch {
		case p < r.Logical:
			return 1
		case p-r.Logical >= r.Length:
			return -1
		}
		return 0
	})
	if !found {
		return 0, fmt.Errorf("block %d of the journal: it has %d", p, l.Super.Length)
	}
	return l.runs[i].Physical + addr.Block(uint32(p)-l.runs[i].Logical), nil
}

// Contains reports whether a block of the disk belongs to the journal.
func (l *Log) Contains(b addr.Block) bool {
	for _, r := range l.runs {
		if b >= r.Physical && b-r.Physical < addr.Block(r.Length) {
			return true
		}
	}
	return false
}

// read reads a block of the journal.
func (l *Log) read(p Pos) ([]byte, error) {
	at, err := l.Where(p)
	if err != nil {
		return nil, err
	}
	b, err := l.FS.Block(at)
	if err != nil {
		return nil, fmt.Errorf("block %d of the journal: %w", p, err)
	}
	return b, nil
}

// write writes a block of the journal.
func (l *Log) write(p Pos, b []byte) error {
	at, err := l.Where(p)
	if err != nil {
		return err
	}
	if err := l.writeHome(at, b); err != nil {
		return fmt.Errorf("block %d of the journal: %w", p, err)
	}
	return nil
}

// writeHome writes blocks of the file system.
func (l *Log) writeHome(at addr.Block, b []byte) error {
	if _, err := l.disk.WriteAt(b, int64(at)*int64(l.Super.BlockSize)); err != nil {
		return fmt.Errorf("write block %d: %w", at, err)
	}
	return nil
}

// sync makes everything written durable.
func (l *Log) sync() error {
	if err := l.disk.Sync(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

// setSuper makes s the journal's superblock, durably.
func (l *Log) setSuper(s Super) error {
	b, err := l.read(0)
	if err != nil {
		return err
	}
	s.setSuper(b)
	if err := l.write(0, b); err != nil {
		return err
	}
	if err := l.sync(); err != nil {
		return err
	}
	l.Super = s
	return nil
}

// setInUse has the file system's superblock say whether the journal is in use,
// durably. What says so already is left alone.
func (l *Log) setInUse(inUse bool) error {
	at, offset := l.FS.Super.Place()
	b, err := l.FS.Block(at)
	if err != nil {
		return err
	}
	old := b[offset : offset+ext4.SuperSize]
	if err := ext4.CheckSuper(old); err != nil {
		return err
	}
	super, err := ext4.SetRecover(old, inUse)
	if err != nil {
		return err
	}
	if !bytes.Equal(super, old) {
		copy(old, super)
		if err := l.writeHome(at, b); err != nil {
			return err
		}
		if err := l.sync(); err != nil {
			return err
		}
	}
	l.FS.Super, err = ext4.ParseSuper(super)
	return err
}
