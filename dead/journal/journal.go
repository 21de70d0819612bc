// Package journal reads the journal of a mounted ext3 or ext4 file system in a
// dead kernel's memory (jbd2), and finishes its last commit: what the kernel had
// accepted and not yet committed becomes one proper transaction in the log on the
// disk, which any replay then carries out.
//
// # Caveats
//
// Either all of the last commit is understood and checked, or none of it is
// written, and an ordinary crash recovery gives what it always does. Operations that were
// in flight when the kernel died may be half in the commit (Journal.Updates): where the
// audit cannot prove that the result is whole, the file system must be checked before it is mounted.
package journal

import (
	"errors"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
)

// ErrDamaged is wrapped by errors about structures in memory that contradict
// themselves: nothing of the last commit may be written.
var ErrDamaged = errors.New("the journal in memory contradicts itself")

// ErrNoJournal says that a file system has no journal.
var ErrNoJournal = errors.New("the file system has no journal")

// ErrExternal says that the journal is on its own device.
var ErrExternal = errors.New("the journal is on another device: not supported")

// ErrAborted says that the dead kernel had given the journal up after an error. It then throws
// away what it had accepted and not committed, even if it panics because of the error (errors=panic):
// before that it writes the superblock, and sleeps (fs/ext4/super.c, ext4_handle_error).
var ErrAborted = errors.New("the journal was aborted by the dead kernel after an error in the file system, and what was not committed before is thrown away")

// Journal is the journal of a file system as the dead kernel had it.
type Journal struct {
	BlockSize   int        // of file system and journal, in bytes
	Head        addr.Block // j_head: the first unused block of the log
	First, Last addr.Block // bounds of the log proper, which is [First, Last)
	Committed   uint32     // j_commit_sequence: the last transaction that was committed
	// Committing and Running are the unfinished transactions, nil where there was none. A block
	// of both is in Committing, as its head is (b_next_transaction), with its newest content.
	Committing, Running *Transaction
	// Revoked are the blocks whose older versions in the log must not be
	// replayed, and for which the kernel had not written revoke records yet.
	Revoked []addr.Block
}

// State is how far the kernel was with a transaction (include/linux/jbd2.h,
// transaction_s.t_state; in this order from 5.10 on).
type State uint32

// The states of a transaction.
const (
	StateRunning State = iota
	StateLocked
	StateSwitch
	StateFlush
	StateCommit
	StateCommitDataFlush
	StateCommitJournalFlush
	StateCommitCallback
	StateFinished
)

func (s State) String() string {
	names := [...]string{
		"running", "locked", "switch", "flush", "commit", "commit-dflush", "commit-jflush", "commit-callback", "finished",
	}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state %d", uint32(s))
}

// Transaction is an unfinished transaction.
type Transaction struct {
	at       addr.Virt
	ID       uint32 // t_tid: its sequence number in the log
	State    State
	LogStart addr.Block // t_log_start: where it begins in the log, if it is committing
	Updates  int        // t_updates: handles that were open
	Buffers  []Buffer   // the blocks it changes
	Freed    int        // blocks of it that were freed since
}

// Buffer is a metadata block, or under data=journal also one of a file, as it was
// in memory when the kernel died.
type Buffer struct {
	Block addr.Block // of the file system
	// Data is the whole block. It belongs to the memory that it was read from, and must
	// not be written to.
	Data []byte
	// Trigger says that the file system changes the block on its way to the log:
	// ext4 does so with the checksums of its orphan file (fs/ext4/orphan.c).
	Trigger bool
	// File is the inode whose content the block has, with data=journal; 0 means metadata.
	File addr.Ino
}

// Updates returns how many handles were open: operations in flight.
func (j *Journal) Updates() int {
	n := 0
	for _, t := range j.unfinished() {
		n += t.Updates
	}
	return n
}

// unfinished returns the unfinished transactions, the older one first.
func (j *Journal) unfinished() []*Transaction {
	return slices.DeleteFunc([]*Transaction{j.Committing, j.Running}, func(t *Transaction) bool { return t == nil })
}

// newest returns the blocks of the unfinished transactions. A block that is in both is the same buffer, or has its
// newest content in the running one.
func (j *Journal) newest() map[addr.Block]Buffer {
	out := make(map[addr.Block]Buffer)
	for _, t := range j.unfinished() {
		for _, b := range t.Buffers {
			out[b.Block] = b
		}
	}
	return out
}

// reader reads one journal.
type reader struct {
	k     *kernel.Kernel
	l     *layout
	at    addr.Virt // of the journal_s
	dev   addr.Virt // of the block_device of the file system
	block int       // in bytes
	heads int       // read so far, of all lists
	pages *pagecache.Buffers
	// listed has the heads of all lists, if one may be missing from them: see moving. It is nil otherwise.
	listed map[addr.Virt]struct{}
}

// Of reads the journal of a file system that is on a device. Errors wrap ErrNoJournal, ErrExternal,
// ErrAborted or ErrDamaged, or are about memory that is not there.
func Of(c *pagecache.Cache, s *pagecache.Superblock, d *pagecache.Device) (*Journal, error) {
	j, err := of(c, s, d)
	if err != nil {
		return nil, fmt.Errorf("read journal of %s: %w", s.ID, err)
	}
	return j, nil
}

func of(c *pagecache.Cache, s *pagecache.Superblock, d *pagecache.Device) (*Journal, error) {
	ext4, err := c.Ext4(s)
	if err != nil {
		return nil, err
	}
	if ext4.Journal == nil {
		return nil, ErrNoJournal
	}
	l, err := newLayout(c)
	if err != nil {
		return nil, err
	}
	r := &reader{k: c.Kernel(), l: l, at: ext4.Journal.Addr}
	if r.pages, err = d.Buffers(); err != nil {
		return nil, err
	}
	b, err := r.k.Bytes(r.at, l.journal.size)
	if err != nil {
		return nil, err
	}
	f := &l.journal
	j := &Journal{
		BlockSize: int(f.blockSize.Uint(b)),
		Head:      addr.Block(f.head.Uint(b)),
		First:     addr.Block(f.first.Uint(b)),
		Last:      addr.Block(f.last.Uint(b)),
		Committed: ext4.Journal.CommitSequence,
	}
	r.block, r.dev = j.BlockSize, f.fsDev.Pointer(b)
	switch {
	case ext4.Journal.Aborted:
		return nil, ErrAborted
	case uint64(j.BlockSize) != s.BlockSize || j.BlockSize > pagecache.MaxBlock || j.BlockSize < 1024:
		return nil, fmt.Errorf("%w: blocks of %d bytes, but of %d in the file system", ErrDamaged, j.BlockSize, s.BlockSize)
	case f.dev.Pointer(b) != r.dev:
		return nil, ErrExternal
	case j.First == 0 || j.First >= j.Last || j.Head < j.First || j.Head >= j.Last:
		return nil, fmt.Errorf("%w: its head is block %d of a log from %d to %d", ErrDamaged, j.Head, j.First, j.Last)
	}
	if !f.listLock.Free(b) {
		r.listed = make(map[addr.Virt]struct{})
	}
	if err := r.transactions(j, f.committing.Pointer(b), f.running.Pointer(b)); err != nil {
		return nil, err
	}
	if r.moving() {
		if err := r.complete(d, j, f.committing.Pointer(b), f.running.Pointer(b)); err != nil {
			return nil, err
		}
	}
	for _, table := range []int{0, 8} {
		blocks, err := r.revoked(kernel.Field{Off: f.tables.Off + table, Size: 8}.Pointer(b))
		if err != nil {
			return nil, fmt.Errorf("revoked blocks: %w", err)
		}
		j.Revoked = append(j.Revoked, blocks...)
	}
	return j, nil
}

// transactions reads the unfinished transactions.
func (r *reader) transactions(j *Journal, committing, running addr.Virt) error {
	if committing == running {
		committing = 0 // about to become the committing one, with nothing written yet
	}
	for _, t := range []struct {
		at   addr.Virt
		name string
		into **Transaction
	}{{committing, "committing", &j.Committing}, {running, "running", &j.Running}} {
		if t.at == 0 {
			continue
		}
		got, err := r.transaction(t.at)
		if err != nil {
			return fmt.Errorf("%s transaction: %w", t.name, err)
		}
		*t.into = got
	}
	c, n := j.Committing, j.Running
	switch {
	case c != nil && n != nil && n.ID != c.ID+1:
		return fmt.Errorf("%w: the running transaction is %d, but the committing one %d", ErrDamaged, n.ID, c.ID)
	case c != nil && (c.LogStart < j.First || c.LogStart >= j.Last):
		return fmt.Errorf("%w: transaction %d begins at block %d of the log", ErrDamaged, c.ID, c.LogStart)
	case c != nil && (c.State < StateFlush || c.State > StateCommitCallback):
		return fmt.Errorf("%w: the committing transaction is in %v", ErrDamaged, c.State)
	case c != nil && c.Updates != 0:
		return fmt.Errorf("%w: the committing transaction has %d open handles", ErrDamaged, c.Updates)
	case n != nil && n.State > StateFlush:
		return fmt.Errorf("%w: the running transaction is in %v", ErrDamaged, n.State)
	}
	return nil
}
