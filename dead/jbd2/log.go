package jbd2

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// Disk is a disk, or an image of one, with a file system at offset 0. Reads see
// earlier writes; Sync returns when what was written is durable.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// StretchDisk is a Disk that can write many stretches at once, which do not overlap, in its own
// order. at returns where on the disk a stretch goes, in bytes, and the pieces of memory that it
// consists of, in order. at may be called from several goroutines.
type StretchDisk interface {
	Disk
	WriteStretches(n int, at func(int) (off int64, data [][]byte)) error
}

// WriteStretches writes n stretches to a disk. at returns where one goes, and the pieces of memory that it consists
// of; it may be called from several goroutines. A stretch for which at fails is not written; others may be.
func WriteStretches(d StretchDisk, n int, at func(int) (Stretch, error)) error {
	var mu sync.Mutex
	var failed error
	err := d.WriteStretches(n, func(i int) (int64, [][]byte) {
		s, err := at(i)
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			failed = errors.Join(failed, err)
			return 0, nil
		}
		return s.Off, s.Data
	})
	return errors.Join(failed, err)
}

// FreeDisk is a Disk that can put off writes to blocks that nobody owns: they are free on the disk
// as it is, after an ordinary recovery, and after the last transaction without what is placed there.
// Writing them changes nothing for anybody until metadata says whose they are, so that they may
// be written before everything else, in any order.
type FreeDisk interface {
	Disk
	// WriteFree takes n stretches that do not overlap. at returns where one goes, and the pieces of
	// memory that it consists of; WriteFree fails if any call of at fails. Reads see the stretches from
	// then on, and they are written later: at is called again for that, from several goroutines, for as
	// long as the memory is open.
	WriteFree(n int, at func(int) (Stretch, error)) error
}

// Stretch is data for one place on a disk.
type Stretch struct {
	Off  int64 // bytes
	Data [][]byte
}

// Len returns the number of bytes.
func (s Stretch) Len() (n int64) {
	for _, piece := range s.Data {
		n += int64(len(piece))
	}
	return n
}

// ErrNoJournal says that a file system has no journal.
var ErrNoJournal = errors.New("the file system has no journal")

// ExternalError says that the journal is on its own device.
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
	FS    *ext4.FS // the file system; its superblock likewise

	disk   Disk
	runs   []ext4.Run  // where the journal lies, in the order of the journal
	byDisk []ext4.Run  // the same, in the order of the disk
	freed  revocations // what ForgetFreed and Forget found
	grown  uint64      // size of the file system with the log when it was last appended to, in blocks
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

// load reads the journal's inode, superblock and extents.
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

// maxRuns bounds the number of pieces of a journal: mke2fs makes a few, and
// one for each indirect block on ext3.
const maxRuns = 1 << 17

// locate maps the whole journal, and checks that no two of its blocks are the same block.
func (l *Log) locate(inode *ext4.Inode) error {
	end := uint64(l.Super.Length)
	for at := uint64(0); at < end; {
		r, err := l.run(inode, uint32(at))
		if err != nil {
			return err
		}
		if len(l.runs) == maxRuns {
			return fmt.Errorf("the journal has more than %d extents", maxRuns)
		}
		r.Length = uint32(min(uint64(r.Length), end-at))
		l.runs = append(l.runs, r)
		at += uint64(r.Length)
	}
	l.byDisk = slices.Clone(l.runs)
	slices.SortFunc(l.byDisk, func(a, b ext4.Run) int { return cmp.Compare(a.Physical, b.Physical) })
	for i := 1; i < len(l.byDisk); i++ {
		before, r := l.byDisk[i-1], l.byDisk[i]
		if before.Physical+addr.Block(before.Length) > r.Physical {
			return fmt.Errorf("blocks %d and %d of the journal are both at block %d", before.Logical, r.Logical, r.Physical)
		}
	}
	return nil
}

// Where returns the block of the disk that holds a block of the journal.
func (l *Log) Where(p Pos) (addr.Block, error) {
	run, err := l.from(p)
	if err != nil {
		return 0, fmt.Errorf("block %d of the journal: %w", p, err)
	}
	return run.Physical, nil
}

// Contains reports whether a block of the disk belongs to the journal.
func (l *Log) Contains(b addr.Block) bool {
	_, found := slices.BinarySearchFunc(l.byDisk, b, func(r ext4.Run, b addr.Block) int {
		switch {
		case b < r.Physical:
			return 1
		case b-r.Physical >= addr.Block(r.Length):
			return -1
		}
		return 0
	})
	return found
}
