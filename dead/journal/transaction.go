package journal

import (
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// Lists of a transaction that hold its blocks, by the number in each of their
// members (include/linux/jbd2.h, BJ_Metadata and so on).
const (
	listNone     = 0
	listMetadata = 1
	listForget   = 2
	listShadow   = 3
	listReserved = 4 // not read: a block that a handle may change
)

const (
	// maxHeads bounds the number of blocks on all lists: more than the largest journal that
	// mke2fs makes, of 1 GiB, can commit with blocks of 1 KiB.
	maxHeads = 1 << 20
	// maxUpdates bounds the handles that are open at once: one per thread.
	maxUpdates = 1 << 22
)

// transaction reads a transaction and the blocks that it changes.
func (r *reader) transaction(at addr.Virt) (*Transaction, error) {
	f := &r.l.transaction
	b, err := r.k.Bytes(at, f.size)
	if err != nil {
		return nil, err
	}
	t := &Transaction{
		at:       at,
		ID:       uint32(f.tid.Uint(b)),
		State:    State(f.state.Uint(b)),
		LogStart: addr.Block(f.logStart.Uint(b)),
		Updates:  int(int32(f.updates.Uint(b))),
	}
	switch {
	case f.journal.Pointer(b) != r.at:
		return nil, fmt.Errorf("%w: t_journal is %v", ErrDamaged, f.journal.Pointer(b))
	case t.State >= StateFinished:
		return nil, fmt.Errorf("%w: t_state is %v", ErrDamaged, t.State)
	case t.Updates < 0 || t.Updates > maxUpdates:
		return nil, fmt.Errorf("%w: %d open handles", ErrDamaged, t.Updates)
	}
	seen := make(map[addr.Block]int)
	for _, list := range []struct {
		first kernel.Field
		kind  uint32
	}{{f.buffers, listMetadata}, {f.shadow, listShadow}, {f.forget, listForget}} {
		n, err := r.list(t, at, list.first.Pointer(b), list.kind, seen)
		if err != nil {
			return nil, fmt.Errorf("list %d of its blocks: %w", list.kind, err)
		}
		if count := int(int32(f.count.Uint(b))); list.kind == listMetadata && n != count {
			return nil, fmt.Errorf("%w: %d blocks instead of %d", ErrDamaged, n, count)
		}
	}
	return t, nil
}

// list reads one list of journal heads: a ring, in which each member must point
// back to the one before it (fs/jbd2/transaction.c, __blist_add_buffer). It
// returns how many there are.
func (r *reader) list(t *Transaction, of, first addr.Virt, kind uint32, seen map[addr.Block]int) (int, error) {
	if first == 0 {
		return 0, nil
	}
	h := &r.l.head
	at, n := first, 0
	for {
		if r.heads++; r.heads > maxHeads {
			return n, fmt.Errorf("%w: more than %d blocks", ErrDamaged, maxHeads)
		}
		b, err := r.k.Bytes(at, h.size)
		if err != nil {
			return n, err
		}
		if owner := h.transaction.Pointer(b); owner != of || uint32(h.list.Uint(b)) != kind {
			return n, fmt.Errorf("%w: head at %v is on list %d of the transaction at %v", ErrDamaged, at, h.list.Uint(b), owner)
		}
		next := h.next.Pointer(b)
		if kind == listForget {
			if err := r.settled(t, b, next == first); err != nil {
				return n, fmt.Errorf("head at %v: %w", at, err)
			}
		}
		if err := r.take(t, at, b, kind, seen); err != nil {
			return n, err
		}
		if n++; r.moving() {
			r.listed[at] = struct{}{}
		}
		back, err := r.k.Pointer(h.previous.In(next))
		switch {
		case err != nil:
			return n, err
		case back != at:
			return n, fmt.Errorf("%w: head at %v points back to %v, not %v", ErrDamaged, next, back, at)
		case next == first:
			return n, nil
		}
		at = next
	}
}

// take adds the block of a journal head to a transaction if it is to be
// committed. It is not if it was freed since (BH_Freed), or forgotten (on the forget
// list, and not BH_JBDDirty).
func (r *reader) take(t *Transaction, at addr.Virt, head []byte, kind uint32, seen map[addr.Block]int) error {
	h, f := &r.l.head, &r.l.buffer
	buffer := h.buffer.Pointer(head)
	b, err := r.k.Bytes(buffer, f.size)
	if err != nil {
		return fmt.Errorf("read buffer: %w", err)
	}
	state, block := f.state.Uint(b), addr.Block(f.block.Uint(b))
	has := func(bit uint) bool { return state>>bit&1 == 1 }
	switch {
	case f.private.Pointer(b) != at:
		return fmt.Errorf("%w: buffer at %v belongs to %v", ErrDamaged, buffer, f.private.Pointer(b))
	case !has(f.jbd):
		return fmt.Errorf("%w: block %d has no journal head", ErrDamaged, block)
	case has(f.freed) && kind == listMetadata && t.State < StateFlush:
		// Only a block that is being committed is marked BH_Freed (fs/jbd2/transaction.c,
		// journal_unmap_buffer, jbd2_journal_forget), and it then moves to another list
		// (__jbd2_journal_refile_buffer).
		return fmt.Errorf("%w: block %d was freed, and is not being committed", ErrDamaged, block)
	case has(f.freed):
		t.Freed++
		return nil
	case kind == listForget && !has(f.jbdDirty):
		return nil // it was freed by the transaction that has it
	case kind == listMetadata && !has(f.jbdDirty):
		return fmt.Errorf("%w: block %d is not dirty", ErrDamaged, block)
	case f.device.Pointer(b) != r.dev:
		return fmt.Errorf("%w: block %d is of another device", ErrDamaged, block)
	case int(f.length.Uint(b)) != r.block:
		return fmt.Errorf("%w: block %d has %d bytes", ErrDamaged, block, f.length.Uint(b))
	case !has(f.uptodate):
		return fmt.Errorf("%w: block %d is not uptodate", ErrDamaged, block)
	}
	data, file, err := r.data(b, block)
	if err != nil {
		return err
	}
	if _, twice := seen[block]; twice {
		return fmt.Errorf("%w: block %d is in the transaction twice", ErrDamaged, block)
	}
	seen[block] = len(t.Buffers)
	t.Buffers = append(t.Buffers, Buffer{Block: block, Data: data, Trigger: h.triggers.Pointer(head) != 0, File: file})
	return nil
}

// data returns the bytes of a buffer, which must be in the page that caches
// its block, and the inode of the file that the page belongs to.
func (r *reader) data(buffer []byte, block addr.Block) ([]byte, addr.Ino, error) {
	f := &r.l.buffer
	pa, err := r.k.Physical(f.data.Pointer(buffer))
	if err != nil {
		return nil, 0, fmt.Errorf("read block %d: %w", block, err)
	}
	file, err := r.pages.Check(f.page.Pointer(buffer), pa, block, r.block)
	if err != nil {
		return nil, 0, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	b, err := r.k.Memory().View(pa, r.block)
	if err != nil {
		return nil, 0, fmt.Errorf("read block %d: %w", block, err)
	}
	return b, file, nil
}

// maxBuckets bounds the size of a table of revoked blocks; jbd2 uses 256 buckets
// (JOURNAL_REVOKE_DEFAULT_HASH).
const maxBuckets = 1 << 16

// revoked reads a table of revoked blocks: an array of lists.
func (r *reader) revoked(at addr.Virt) ([]addr.Block, error) {
	b, err := r.k.Bytes(at, r.l.table.size)
	if err != nil {
		return nil, err
	}
	buckets := r.l.table.buckets.Uint(b)
	if buckets > maxBuckets {
		return nil, fmt.Errorf("%w: the revoke table has %d buckets", ErrDamaged, buckets)
	}
	var out []addr.Block
	first := r.l.table.hashes.Pointer(b)
	for n := range buckets {
		head := first + addr.Virt(16*n)
		before := head
		next, err := r.k.Pointer(head)
		for err == nil && next != head {
			var entry []byte
			if entry, err = r.k.Bytes(next-addr.Virt(r.l.record.hash.Off), r.l.record.size); err != nil {
				break
			}
			links := r.l.record.hash.Bytes(entry)
			back := kernel.Field{Off: 8, Size: 8}.Pointer(links)
			if back != before || len(out) == maxHeads {
				return nil, fmt.Errorf("%w: record at %v points back to %v, not %v", ErrDamaged, next, back, before)
			}
			out = append(out, addr.Block(r.l.record.block.Uint(entry)))
			before, next = next, kernel.Field{Off: 0, Size: 8}.Pointer(links)
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}
