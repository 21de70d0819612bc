package pagecache

import (
	"errors"
	"iter"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// Options of a mount of ext4 (fs/ext4/ext4.h): EXT4_MOUNT_DATA_FLAGS, EXT4_MOUNT_JOURNAL_DATA and EXT4_MOUNT_DELALLOC.
const (
	optionData        = 0xC00
	optionJournalData = 0x400
	optionDelay       = 0x8000000
)

// flagJournalData is EXT4_JOURNAL_DATA_FL (fs/ext4/ext4.h): chattr +j.
const flagJournalData = 0x4000

// options returns the options of a mount of the ext family; 0 if the kernel does not tell them.
func (c *Cache) options(s *Superblock) uint64 {
	f := c.layout.ext4.options
	if c.layout.ext4Err != nil || !f.Present() {
		return 0
	}
	v, _ := c.k.U32(f.In(s.info))
	return uint64(v)
}

// DirtyOr yields what Dirty does, and every other inode that is wanted, or is a file whose content may be in the journal only (Logged).
// wanted is called for each inode that is not dirty; nil wants none.
func (c *Cache) DirtyOr(s *Superblock, wanted func(*Inode) bool) iter.Seq2[*Inode, error] {
	logged := c.mayLog(s)
	if wanted == nil && logged == nil {
		return c.Dirty(s)
	}
	return c.dirtyAnd(s, func(i *Inode, err error) bool {
		var refusal *Refusal
		if err != nil {
			return !errors.As(err, &refusal)
		}
		yes := wanted != nil && wanted(i)
		return yes || logged != nil && i.Regular() && logged(i)
	})
}

// mayLog returns a function that reports whether the content of a file may be in the journal only; nil if that of none may.
func (c *Cache) mayLog(s *Superblock) func(*Inode) bool {
	if !s.HasBuffers() {
		return nil
	}
	super, err := c.extSuper(s)
	options := c.options(s)
	if err != nil || options&optionDelay != 0 && super.Incompat&ext4.IncompatInlineData == 0 {
		return nil // with delayed allocation, no data goes to the journal (ext4_inode_journal_mode)
	}
	return func(i *Inode) bool {
		return options&optionData == optionJournalData || c.ext4Flags(i)&(flagJournalData|flagInlineData) != 0
	}
}

// ext4Flags returns the flags of an inode of the ext family (EXT4_*_FL); 0 if the kernel does not tell them.
func (c *Cache) ext4Flags(i *Inode) uint64 {
	l, err := c.maps()
	if err != nil {
		return 0
	}
	b, err := c.k.Bytes(i.Addr-addr.Virt(l.inode.Off), l.size)
	if err != nil {
		return 0
	}
	return l.flags.Uint(b)
}

// Logged yields those unsaved bytes of a file of the ext family that the journal brings to the disk, whether or not Unsaved
// yields them: blocks of a file whose data is journaled, which have no mark in the page cache until they are committed (up to 6.3,
// commit d84c9ebdac1e), and the content of a file that is kept in its inode (inline_data), if changed says that the inode may not
// be on the disk. What is not taken is a *Refusal, after which the walk goes on.
func (c *Cache) Logged(s *Superblock, i *Inode, changed bool) iter.Seq2[Piece, error] {
	return func(yield func(Piece, error) bool) {
		switch flags := c.ext4Flags(i); {
		case flags&flagInlineData != 0:
			if changed && i.Size > 0 {
				c.inline(s, i, yield)
			}
		case flags&flagJournalData != 0, c.options(s)&optionData == optionJournalData:
			last := i.unit.End(i.Size)
			c.cached(i, last, func(at slotted, err error) bool {
				if err != nil {
					return yield(Piece{}, i.refuse(at.index, min(at.pages, uint64(last-min(at.index, last))), BadTree, err))
				}
				return at.isValue() || c.loggedIn(i, at, yield)
			})
		}
	}
}

// inline yields the content of a file that is in its inode. Reads and writes of it go through its first page.
func (c *Cache) inline(s *Superblock, i *Inode, yield func(Piece, error) bool) {
	for p, err := range c.Held(s, i) {
		yield(p, err)
		return // it is in one page
	}
	yield(Piece{}, i.refuse(0, 1, NotUptodate, errInline))
}

var errInline = errors.New("its content is in its inode, and not in the page cache")

// loggedIn yields the blocks of one entry of a file's page tree that are to go to the journal.
func (c *Cache) loggedIn(i *Inode, at slotted, yield func(Piece, error) bool) bool {
	p, err := c.sound(i, at)
	if err != nil {
		return yield(Piece{}, err)
	}
	if at.index != p.index || !p.has(c.layout.page.hasPrivate) {
		return true
	}
	var found []Piece
	l := &c.layout.buffer
	err = c.ring(p, func(b bufferState) {
		if b.has(l.uptodate) && b.has(l.private+jbdDirty) {
			found = append(found, p.piece(b.off, b.off+b.length))
		}
	})
	if err != nil {
		return yield(Piece{}, i.refuse(at.index, p.pages, BadBuffers, err))
	}
	yield = p.intact(i, yield)
	for _, piece := range found {
		if !yield(piece, nil) {
			return false
		}
	}
	return true
}
