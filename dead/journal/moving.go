package journal

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
)

// While jbd2 moves a block from one list to another, it holds j_list_lock. The block is on no list for some
// instructions, with all lists and counts in order, and it is not BH_JBDDirty until the move is over
// (fs/jbd2/transaction.c, __jbd2_journal_file_buffer and __jbd2_journal_refile_buffer). A kernel that died in between leaves a
// block that the lists lack, or that looks as if it was freed.

var errMoving = errors.New("jbd2 was moving it between two lists (j_list_lock was held)")

// moving reports whether a block may be on its way from one list to another.
func (r *reader) moving() bool { return r.listed != nil }

// settled refuses a head on the forget list that may be on its way there or away. One that is not BH_JBDDirty
// otherwise was freed by its transaction, and then is not modified in it (jbd2_journal_forget, journal_unmap_buffer). A
// running transaction marks a head as not modified, too, before it waits for a commit that moves the head to the end
// of its forget list (do_get_write_access).
func (r *reader) settled(t *Transaction, head []byte, last bool) error {
	h, f := &r.l.head, &r.l.buffer
	if !r.moving() {
		return nil
	}
	state, err := r.k.U64(f.state.In(h.buffer.Pointer(head)))
	if err != nil {
		return fmt.Errorf("read buffer: %w", err)
	}
	dirty, freed := state>>f.jbdDirty&1 == 1, state>>f.freed&1 == 1
	freed = freed || h.modified.Uint(head) == 0 && h.nextTransaction.Pointer(head) == 0 && !(last && t.State == StateCommitDataFlush)
	if !dirty && !freed {
		return fmt.Errorf("%w: %w", ErrDamaged, errMoving)
	}
	return nil
}

// done reports whether a head that is on no list is that of a block that its transaction is through with: the commit block is on the disk,
// and the commit lets go of the blocks that no other transaction has (fs/jbd2/commit.c, jbd2_journal_commit_transaction: from
// T_COMMIT_JFLUSH on nothing else takes them off the forget list; __jbd2_journal_unfile_buffer).
func (r *reader) done(t *Transaction, head []byte) bool {
	h := &r.l.head
	return t != nil && t.State == StateCommitJournalFlush && h.transaction.Pointer(head) == t.at && h.list.Uint(head) == listNone && h.nextTransaction.Pointer(head) == 0
}

// complete checks that no block of an open transaction is missing from its lists. A block on the list of reserved ones is
// not missing: its transaction has not changed it yet.
func (r *reader) complete(d *pagecache.Device, j *Journal, committing, running addr.Virt) error {
	h := &r.l.head
	var bad error
	err := d.JournalHeads(func(at addr.Virt, block addr.Block) {
		if _, there := r.listed[at]; there || bad != nil {
			return
		}
		b, err := r.k.Bytes(at, h.size)
		if err != nil {
			bad = fmt.Errorf("block %d: %w", block, err)
			return
		}
		owner := h.transaction.Pointer(b)
		if owner != 0 && (owner == committing || owner == running) && h.list.Uint(b) != listReserved && !r.done(j.Committing, b) {
			bad = fmt.Errorf("block %d: %w", block, errMoving)
		}
	})
	if err = errors.Join(err, bad); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}
