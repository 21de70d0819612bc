package pagecache

import (
	"errors"
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

type bufferLayout struct {
	size                            int
	state, next, page, length, data kernel.Field
	block, owner, users             kernel.Field
	uptodate, dirty, asyncWrite     uint // numbers of bits in state
	mapped, delay, unwritten, lock  uint
	fresh                           uint // just allocated (BH_New)
	writeError                      uint
	private                         uint // the first bit that is the file system's own
}

func (l *bufferLayout) look(t *kernel.Types) error {
	b := t.Layout("buffer_head")
	l.size = b.Size
	l.state = b.Field("b_state", 8)
	l.next = b.Field("b_this_page", 8)
	// In a union with b_folio since 6.3 (commit d685c668b069).
	l.page = b.First([]string{"b_page", "b_folio"}, 8)
	l.length = b.Field("b_size", 8)
	l.data = b.Field("b_data", 8)
	l.block = b.Field("b_blocknr", 8)
	l.owner = b.Optional("b_private", 8)
	l.users = b.Optional("b_count.counter", 4)
	errs := []error{b.Err()}
	for _, bit := range []struct {
		name string
		into *uint
	}{
		{"BH_Uptodate", &l.uptodate}, {"BH_Dirty", &l.dirty}, {"BH_Async_Write", &l.asyncWrite},
		{"BH_Mapped", &l.mapped}, {"BH_New", &l.fresh}, {"BH_Lock", &l.lock}, {"BH_Delay", &l.delay}, {"BH_Unwritten", &l.unwritten}, {"BH_Write_EIO", &l.writeError}, {"BH_PrivateStart", &l.private},
	} {
		v, err := t.Enum("bh_state_bits", bit.name)
		if err == nil && v > 63 {
			err = fmt.Errorf("%s is bit %d", bit.name, v)
		}
		*bit.into = uint(v)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// minBuffer is the smallest block a buffer stands for, in bytes.
const minBuffer = 512

// maxPrivate bounds the number of state bits from BH_PrivateStart on: jbd2 and its file systems use fewer
// (include/linux/jbd2.h, enum jbd_state_bits; fs/ext4/ext4.h, BH_BITMAP_UPTODATE).
const maxPrivate = 16

// bufferState is a buffer head as read: a block of a page.
type bufferState struct {
	at     addr.Virt
	owner  addr.Virt // b_private: the journal_head of a buffer that belongs to a journal
	state  uint64
	used   bool       // somebody holds a reference to it (b_count)
	block  addr.Block // on the device, in units of length
	off    int64      // in the page
	length int64      // in bytes
}

func (b *bufferState) has(bit uint) bool { return b.state>>bit&1 == 1 }

// ring visits the buffers of a page, which are a ring, in the order of their offset
// in the page (fs/buffer.c, create_empty_buffers).
func (c *Cache) ring(p *pageState, visit func(bufferState)) error {
	l := &c.layout.buffer
	size := p.size()
	off := int64(0)
	for next := p.private; off < size; {
		b, err := c.k.Bytes(next, l.size)
		if err != nil {
			return fmt.Errorf("read buffer: %w", err)
		}
		length := int64(l.length.Uint(b))
		inPage := int64(uint64(l.data.Pointer(b)) & uint64(size-1))
		switch {
		case length < minBuffer || length > size-off || length&(length-1) != 0:
			return fmt.Errorf("buffer at %v has %d bytes", next, length)
		case inPage != off:
			return fmt.Errorf("buffer at %v is at %d of its page, not %d", next, inPage, off)
		case c.frameOf(l.page.Pointer(b)) != p.frame:
			return fmt.Errorf("buffer at %v is of another page", next)
		case l.state.Uint(b)>>(l.private+maxPrivate) != 0:
			return fmt.Errorf("buffer at %v has state %#x", next, l.state.Uint(b))
		}
		state := bufferState{at: next, state: l.state.Uint(b), block: addr.Block(l.block.Uint(b)), off: off, length: length}
		if l.owner.Present() {
			state.owner = l.owner.Pointer(b)
		}
		state.used = l.users.Present() && l.users.Uint(b) > 0
		visit(state)
		off += length
		next = l.next.Pointer(b)
		if (off == size) != (next == p.private) {
			return errors.New("the ring of buffers does not close")
		}
	}
	return nil
}

// jbdDirty is the bit number of BH_JBDDirty, counted from BH_PrivateStart. It is set on a
// dirty data block that belongs to a journal (include/linux/jbd2.h, enum jbd_state_bits).
const jbdDirty = 5

// buffers yields the known parts of a page that is not uptodate as a whole: blocks
// that were written to, hence are uptodate, and are dirty or under writeback. A page
// may be dirty while no block of it is: what was written was truncated or punched out
// again (fs/buffer.c, discard_buffer).
func (c *Cache) buffers(i *Inode, p *pageState, at slotted, yield func(Piece, error) bool) bool {
	l := &c.layout.buffer
	bad := func(why Reason, cause error) bool {
		return yield(Piece{}, i.refuse(at.index, p.pages, why, cause))
	}
	var found []Piece
	empty := 0 // blocks that are to be written, and were never filled
	err := c.ring(p, func(b bufferState) {
		switch {
		case !b.has(l.dirty) && !b.has(l.asyncWrite) && !b.has(l.private+jbdDirty):
		case b.has(l.uptodate):
			found = append(found, p.piece(b.off, b.off+b.length))
		default:
			empty++
		}
	})
	if err != nil {
		return bad(BadBuffers, err)
	}
	if len(found) > 0 {
		if err := c.migrating(p); err != nil {
			return bad(NotUptodate, err)
		}
	}
	for _, piece := range found {
		if !yield(piece, nil) {
			return false
		}
	}
	return empty == 0 || bad(NotUptodate, nil)
}

// errMigrating says that the bytes of a page may be those of something else.
var errMigrating = errors.New("its content was being moved to this page from another one")

// unfilled reports whether a page may still wait for the content that the kernel moves into it from another page (mm/migrate.c,
// move_to_new_folio). Up to 6.10 the page first takes the place of the other one in the file, with its marks and what belongs to
// it, then the bytes are copied, and then it is marked uptodate; all the while it is locked. Somebody who reads the page or
// writes to it holds the lock, too. The kernel does not move a page that is under writeback.
func (c *Cache) unfilled(p *pageState) bool {
	l := &c.layout.page
	return p.has(l.locked) && !p.has(l.uptodate) && !p.writing
}

// migrating returns errMigrating if a page with buffers is unfilled and all its buffers are locked, as they are while it is
// migrated (mm/migrate.c, buffer_migrate_lock_buffers). A buffer may also be locked because it is read, and then is not uptodate,
// or because it is written, and then is under writeback or is not dirty and has users.
func (c *Cache) migrating(p *pageState) error {
	if !c.unfilled(p) {
		return nil
	}
	l := &c.layout.buffer
	locked, filled := true, false
	err := c.ring(p, func(b bufferState) {
		locked = locked && b.has(l.lock) && !b.has(l.asyncWrite) && (b.has(l.dirty) || !b.used)
		filled = filled || b.has(l.uptodate)
	})
	if err == nil && locked && filled {
		err = errMigrating
	}
	return err
}

// odd reports whether a buffer of a file that is neither dirty nor under writeback has a state in which no kernel
// leaves it: a page that is uptodate has only uptodate buffers, and the page is locked while a buffer is read or gets
// a new block (fs/buffer.c, __block_write_begin_int). Such a buffer may well have been unsaved.
func (c *Cache) odd(p *pageState, b *bufferState) bool {
	l, page := &c.layout.buffer, &c.layout.page
	return !b.has(l.uptodate) && (p.has(page.uptodate) || (b.has(l.fresh) || b.has(l.lock)) && !p.has(page.locked))
}

// frameOf is PageFrame, but returns an impossible frame instead of an error.
func (c *Cache) frameOf(page addr.Virt) addr.PFN {
	frame, err := c.k.PageFrame(page)
	if err != nil {
		return ^addr.PFN(0)
	}
	return frame
}
