package pagecache

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// headLayout is what is read of a journal_head (include/linux/journal-head.h).
type headLayout struct {
	buffer, transaction, next kernel.Field
}

func (c *Cache) newHeadLayout() (*headLayout, error) {
	l := layoutIn(c.k, "journal_head", "jbd2", "ext4")
	h := &headLayout{buffer: l.Field("b_bh", 8), transaction: l.Field("b_transaction", 8), next: l.Field("b_next_transaction", 8)}
	return h, l.Err()
}

// Settled returns a metadata block of the file system as memory has it, if no change of it
// was on its way to the disk when the kernel died: it was not changed since it was read or
// written, and is not in an unfinished transaction. A recovery of the disk's log then leaves
// the same bytes on the disk. ErrNotCached says that memory does not have the block, or has
// it in another state. Do not use it for blocks that may be allocated to files and freed
// again: what is cached of them may be from before.
func (d *Device) Settled(block addr.Block, size int) ([]byte, error) {
	p, within, err := d.settled(block, size)
	if err != nil {
		return nil, err
	}
	return d.c.k.Memory().View(p.phys()+addr.Phys(within), size)
}

// pending reports whether a change of a metadata block is on its way to the disk: memory has the block, and it is not settled.
func (d *Device) pending(block addr.Block, size int) (bool, error) {
	p, _, err := d.settled(block, size)
	if errors.Is(err, ErrNotCached) {
		return p != nil, nil
	}
	return false, err
}

// settled returns the page that has a block, and the block's offset in it. With ErrNotCached the block is not settled, or, without
// a page, not in memory.
func (d *Device) settled(block addr.Block, size int) (p *pageState, within int64, err error) {
	if size < minBuffer || size > MaxBlock || uint64(block) > 1<<62/uint64(size) {
		return nil, 0, fmt.Errorf("read block %d: not a block of %d bytes", block, size)
	}
	if p, within, err = d.pageOf(int64(block)*int64(size), size); err != nil {
		return p, within, err
	}
	l := &d.c.layout.page
	switch {
	case p.has(l.hasPrivate):
		err = d.settledIn(p, within, int64(size))
	case p.has(l.dirty) || p.has(l.writeback) || !p.has(l.uptodate):
		err = ErrNotCached
	}
	return p, within, err
}

// settledIn checks the buffers of a part of a page.
func (d *Device) settledIn(p *pageState, within, size int64) error {
	l := &d.c.layout.buffer
	var errs []error
	err := d.c.ring(p, func(b bufferState) {
		if b.off >= within+size || b.off+b.length <= within {
			return
		}
		switch {
		case !b.has(l.uptodate):
			errs = append(errs, ErrNotCached)
		case b.has(l.private): // BH_JBD, the first of jbd2's own bits (include/linux/jbd2.h, enum jbd_state_bits)
			errs = append(errs, d.outside(&b))
		case b.has(l.dirty) || b.has(l.asyncWrite) || b.has(l.lock) || b.has(l.writeError):
			errs = append(errs, ErrNotCached)
		}
	})
	return errors.Join(err, errors.Join(errs...))
}

// outside returns ErrNotCached if a buffer that belongs to a journal is in an unfinished
// transaction. One that only waits for a checkpoint is already in the log.
func (d *Device) outside(b *bufferState) error {
	l, err := d.c.heads()
	if err != nil {
		return err
	}
	of, err := d.c.k.Pointer(l.buffer.In(b.owner))
	if err != nil {
		return err
	}
	in, err := d.c.k.Pointer(l.transaction.In(b.owner))
	if err != nil {
		return err
	}
	next, err := d.c.k.Pointer(l.next.In(b.owner))
	switch {
	case err != nil:
		return err
	case of != b.at:
		return fmt.Errorf("%w: buffer at %v does not check out", errTree, b.at)
	case in != 0 || next != 0:
		return ErrNotCached
	}
	return nil
}
