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

// Settled returns a block of the file system's own as memory has it, if nothing about it
// was on its way to the disk when the kernel died: it was neither changed since it was
// read or written, nor is it in a transaction that was not finished. A recovery of the
// disk's log leaves the disk with the same bytes then. ErrNotCached says that memory
// does not have the block, or not so. Blocks that are given to files and taken back do
// not qualify: what is cached of them may be of earlier.
func (d *Device) Settled(block addr.Block, size int) ([]byte, error) {
	if size < minBuffer || size > MaxBlock || uint64(block) > 1<<62/uint64(size) {
		return nil, fmt.Errorf("read block %d: not a block of %d bytes", block, size)
	}
	p, within, err := d.pageOf(int64(block)*int64(size), size)
	if err != nil {
		return nil, err
	}
	l := &d.c.layout.page
	switch {
	case p.has(l.hasPrivate):
		err = d.settledIn(p, within, int64(size))
	case p.has(l.dirty) || p.has(l.writeback) || !p.has(l.uptodate):
		err = ErrNotCached
	}
	if err != nil {
		return nil, err
	}
	return d.c.k.Memory().View(p.phys()+addr.Phys(within), size)
}

// settledIn looks at the buffers that stand for a piece of a page.
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

// outside returns ErrNotCached if a buffer of a journal is in a transaction that was not
// finished. What only waits for a checkpoint is in the log.
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
