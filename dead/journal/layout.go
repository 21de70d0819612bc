package journal

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/kernel"
	"understudy.dev/understudy/dead/pagecache"
)

// layout says where the members of jbd2's structures (include/linux/jbd2.h,
// include/linux/journal-head.h, fs/jbd2/revoke.c) and of buffer heads are.
type layout struct {
	journal struct {
		size                                     int
		running, committing                      kernel.Field
		head, first, last, blockSize, dev, fsDev kernel.Field
		tables                                   kernel.Field // the two tables of revoked blocks
		listLock                                 kernel.Lock  // of the lists of all transactions
	}
	transaction struct {
		size                                          int
		journal, tid, state, logStart, updates, count kernel.Field
		buffers, forget, shadow                       kernel.Field
	}
	head struct {
		size                                                int
		buffer, list, transaction, next, previous, triggers kernel.Field
		modified, nextTransaction                           kernel.Field
	}
	buffer struct {
		size                                              int
		state, block, length, data, device, private, page kernel.Field
		uptodate, jbd, jbdDirty, freed                    uint // numbers of bits in state
	}
	table struct {
		size            int
		buckets, hashes kernel.Field
	}
	record struct {
		size        int
		hash, block kernel.Field
	}
}

func newLayout(c *pagecache.Cache) (*layout, error) {
	l := &layout{}
	of := func(name string) *kernel.Layout { return c.Layout(name, "jbd2", "ext4") }

	j := of("journal_s")
	l.journal.size = j.Size
	l.journal.running = j.Field("j_running_transaction", 8)
	l.journal.committing = j.Field("j_committing_transaction", 8)
	l.journal.head = j.Field("j_head", 8)
	l.journal.first = j.Field("j_first", 8)
	l.journal.last = j.Field("j_last", 8)
	l.journal.blockSize = j.Field("j_blocksize", 4)
	l.journal.dev = j.Field("j_dev", 8)
	l.journal.fsDev = j.Field("j_fs_dev", 8)
	l.journal.tables = j.Field("j_revoke_table", 16)
	l.journal.listLock = j.Lock("j_list_lock")

	t := of("transaction_s")
	l.transaction.size = t.Size
	l.transaction.journal = t.Field("t_journal", 8)
	l.transaction.tid = t.Field("t_tid", 4)
	l.transaction.state = t.Field("t_state", 4)
	l.transaction.logStart = t.Field("t_log_start", 8)
	l.transaction.count = t.Field("t_nr_buffers", 4)
	l.transaction.updates = t.Field("t_updates.counter", 4)
	l.transaction.buffers = t.Field("t_buffers", 8)
	l.transaction.forget = t.Field("t_forget", 8)
	l.transaction.shadow = t.Field("t_shadow_list", 8)

	h := of("journal_head")
	l.head.size = h.Size
	l.head.buffer = h.Field("b_bh", 8)
	l.head.list = h.Field("b_jlist", 4)
	l.head.transaction = h.Field("b_transaction", 8)
	l.head.next = h.Field("b_tnext", 8)
	l.head.previous = h.Field("b_tprev", 8)
	l.head.triggers = h.Field("b_triggers", 8)
	l.head.modified = h.Field("b_modified", 4)
	l.head.nextTransaction = h.Field("b_next_transaction", 8)

	table := of("jbd2_revoke_table_s")
	l.table.size = table.Size
	l.table.buckets = table.Field("hash_size", 4)
	l.table.hashes = table.Field("hash_table", 8)
	record := of("jbd2_revoke_record_s")
	l.record.size = record.Size
	l.record.hash = record.Field("hash", 16)
	l.record.block = record.Field("blocknr", 8)
	return l, errors.Join(j.Err(), t.Err(), h.Err(), table.Err(), record.Err(), l.lookBuffer(c.Kernel().Types()))
}

// lookBuffer looks up the fields of buffer heads. jbd2's own state bits follow the
// kernel's (include/linux/jbd2.h, enum jbd_state_bits; in this order from 5.10
// on): they are counted from there, because the types of a module may be missing.
func (l *layout) lookBuffer(t *kernel.Types) error {
	b := t.Layout("buffer_head")
	l.buffer.size = b.Size
	l.buffer.state = b.Field("b_state", 8)
	l.buffer.block = b.Field("b_blocknr", 8)
	l.buffer.length = b.Field("b_size", 8)
	l.buffer.data = b.Field("b_data", 8)
	l.buffer.device = b.Field("b_bdev", 8)
	l.buffer.private = b.Field("b_private", 8)
	// In a union with b_folio since 6.3 (commit d685c668b069).
	l.buffer.page = b.First([]string{"b_page", "b_folio"}, 8)
	uptodate, err := t.Enum("bh_state_bits", "BH_Uptodate")
	private, err2 := t.Enum("bh_state_bits", "BH_PrivateStart")
	if err = errors.Join(b.Err(), err, err2); err != nil {
		return err
	}
	if uptodate > 63 || private > 56 {
		return fmt.Errorf("bits of buffers: BH_Uptodate is %d, BH_PrivateStart %d", uptodate, private)
	}
	const freed, jbdDirty = 2, 5 // BH_Freed, BH_JBDDirty
	l.buffer.uptodate, l.buffer.jbd, l.buffer.freed, l.buffer.jbdDirty = uint(uptodate), uint(private), uint(private)+freed, uint(private)+jbdDirty
	return nil
}
