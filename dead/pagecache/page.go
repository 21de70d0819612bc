package pagecache

import (
	"errors"
	"fmt"
	"iter"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// Piece is a stretch of unsaved bytes of a file that is contiguous in the file
// and in physical memory. At the end of the file it ends with the page, not at the
// file's size.
type Piece struct {
	addr.Span // in the file
	Phys      addr.Phys
	Writeback bool // it was on its way to the disk, which may have all of it, some, or nothing
}

type pageLayout struct {
	size                           int
	flags, mapping, index, private kernel.Field
	folioSize                      int
	order                          kernel.Field // of a large folio, counted from its first struct page
	uptodate, dirty, writeback     uint         // numbers of bits in flags
	head, hasPrivate, locked       uint
	poisoned                       uint
	canPoison                      bool
}

func (p *pageLayout) look(t *kernel.Types) error {
	l := t.Layout("page")
	p.size = l.Size
	p.flags = l.First([]string{"flags.f", "flags"}, 8) // memdesc_flags_t since 6.18
	p.mapping = l.Field("mapping", 8)
	// "index" up to 6.15, for folios only after that (seen on 7.2).
	p.index = l.First([]string{"index", "__folio_index"}, 8)
	p.private = l.Field("private", 8)
	errs := []error{l.Err(), p.lookOrder(t)}
	for _, bit := range []struct {
		name string
		into *uint
	}{
		{"PG_uptodate", &p.uptodate}, {"PG_dirty", &p.dirty}, {"PG_writeback", &p.writeback},
		{"PG_head", &p.head}, {"PG_private", &p.hasPrivate}, {"PG_locked", &p.locked},
	} {
		v, err := t.Enum("pageflags", bit.name)
		if err == nil && v > 63 {
			err = fmt.Errorf("%s is bit %d", bit.name, v)
		}
		*bit.into = uint(v)
		errs = append(errs, err)
	}
	if v, err := t.Enum("pageflags", "PG_hwpoison"); err == nil && v < 64 {
		p.poisoned, p.canPoison = uint(v), true
	}
	return errors.Join(errs...)
}

// lookOrder finds where the order of a large folio is: a byte in its second struct page. It was
// compound_order there before there was a struct folio (5.16), and while struct folio was as
// long as one struct page (up to 6.0); _folio_order up to 6.5; then the lowest byte of _flags_1
// (commit ebc1baf5c9b4, 6.6).
func (p *pageLayout) lookOrder(t *kernel.Types) error {
	f := t.Layout("folio")
	p.folioSize = f.Size
	switch {
	case f.Has("_folio_order"):
		p.order = f.Field("_folio_order", 1)
	case f.Has("_flags_1"):
		p.order = f.First([]string{"_flags_1", "_flags_1.f"}, 8)
		p.order.Size = 1
	default:
		l := t.Layout("page")
		p.order = l.Field("compound_order", 1)
		p.order.Off += l.Size
		p.folioSize = 2 * l.Size
		return l.Err()
	}
	return f.Err()
}

// pageState is a decoded struct page, the first of its folio.
type pageState struct {
	unit    addr.Pages
	frame   addr.PFN
	pages   uint64 // in the folio
	flags   uint64
	mapping addr.Virt
	index   addr.Index
	private addr.Virt
	writing bool         // under writeback
	broken  []addr.Index // pages of the file whose memory is broken, as far as findBroken looked
}

// piece returns the part of a folio between two offsets in it.
func (p *pageState) piece(off, end int64) Piece {
	start := p.start()
	return Piece{
		Span: addr.Span{Off: start + off, End: start + end}, Phys: p.phys() + addr.Phys(off), Writeback: p.writing,
	}
}

// start is where the folio begins in its file, size how many bytes it has, and phys where they are.
func (p *pageState) start() int64    { return p.unit.Byte(p.index) }
func (p *pageState) size() int64     { return int64(p.pages) << p.unit }
func (p *pageState) phys() addr.Phys { return p.unit.Phys(p.frame) }

func (p *pageState) has(bit uint) bool { return p.flags>>bit&1 == 1 }

// covers reports whether all pages that an entry stands for are in the folio.
func (p *pageState) covers(at slotted) bool {
	return at.index >= p.index && uint64(at.index-p.index)+at.pages <= p.pages
}

// Unsaved yields the bytes of a file in the page cache that are not on the disk,
// or not known to be: those of pages that are dirty, under writeback, or marked
// for it. Pieces ascend, do not overlap, and end with the page that holds the end
// of the file: pages beyond it are not part of the file, and are about to be dropped. For a
// file of a server they are the bytes that the server may not have on its disk. What is not
// taken is a *Refusal, after which the walk goes on. If everything was taken but the marks
// contradict the pages, a last *Refusal says so: more of the file may not be on the disk.
//
// If a write of the file to the disk has failed, everything that memory holds of the file is
// yielded; at the end, what memory does not hold is a *Refusal (WriteFailed).
func (c *Cache) Unsaved(s *Superblock, i *Inode) iter.Seq2[Piece, error] {
	if i.Failed && !s.InMemory() {
		return c.rewritten(s, i)
	}
	return c.unsaved(s, i)
}

// unsaved yields what the marks of the page cache say is unsaved.
func (c *Cache) unsaved(s *Superblock, i *Inode) iter.Seq2[Piece, error] {
	return func(consume func(Piece, error) bool) {
		all := true // everything was taken, and the consumer asked for more
		yield := ascending(func(p Piece, err error) bool {
			more := consume(p, err)
			all = all && more && err == nil
			return more
		})
		last := i.unit.End(i.Size)
		if s.nfs() {
			c.unsent(i, last, yield)
			return
		}
		c.marked(i, last, func(at slotted, err error) bool {
			if err != nil {
				left := uint64(last - min(at.index, last))
				return yield(Piece{}, i.refuse(at.index, min(at.pages, left), BadTree, err))
			}
			return c.pieces(s, i, at, yield)
		})
		if all && !s.InMemory() {
			if err := c.unmarked(i, last); err != nil {
				yield(Piece{}, i.refuse(0, uint64(last), BadTree, err))
			}
		}
	}
}

// ascending wraps consume so that each byte and each broken page reaches it only once, and no empty
// piece does: the pages of one folio may have an entry of the tree each.
func ascending(consume func(Piece, error) bool) func(Piece, error) bool {
	done := int64(0)
	return func(p Piece, err error) bool {
		var r *Refusal
		if errors.As(err, &r) && r.Reason == Poisoned {
			p.Span = r.Span()
		} else if err != nil {
			return consume(p, err)
		}
		p = p.part(done, p.End)
		done = max(done, p.End)
		return p.Len() == 0 || consume(p, err)
	}
}

// refuse builds a refusal about pages of the inode.
func (i *Inode) refuse(index addr.Index, pages uint64, why Reason, cause error) *Refusal {
	return &Refusal{Inode: i.Ino, Index: index, Pages: pages, Each: i.unit, Reason: why, Cause: cause}
}

// pieces yields the unsaved bytes of one entry of the tree.
func (c *Cache) pieces(s *Superblock, i *Inode, at slotted, yield func(Piece, error) bool) bool {
	switch {
	case at.isValue() && i.Flags&FlagDAX == 0 && entry(i.head) == at.entry:
		return true // the shadow of the only page of the file, which was evicted, hence clean
	case at.isValue() && i.Flags&FlagDAX != 0:
		return yield(Piece{}, i.refuse(at.index, at.pages, DAX, nil))
	case at.isValue(), at.isInternal(), at.entry == 0:
		return yield(Piece{}, i.refuse(at.index, at.pages, BadSlot, fmt.Errorf("slot holds %#x", uint64(at.entry))))
	}
	p, err := c.page(addr.Virt(at.entry))
	if err != nil {
		return yield(Piece{}, i.refuse(at.index, at.pages, Unreadable, err))
	}
	l := &c.layout.page
	if entry(i.head) == at.entry && !i.marked && !p.has(l.dirty) && !p.writing {
		return true // the only page of the file, and clean
	}
	if err := c.belongs(i, p, at); err != nil {
		return yield(Piece{}, err)
	}
	yield = p.intact(i, yield)
	switch {
	case s.smb():
		return c.written(i, p, at, yield)
	case p.has(l.uptodate):
		return yield(whole(p, at), nil)
	}
	return c.partly(s, i, p, at, yield)
}

// belongs checks that the page of an entry of a file's tree belongs to the file, and finds its broken
// pages. An error is a *Refusal of everything that the entry stands for.
func (c *Cache) belongs(i *Inode, p *pageState, at slotted) error {
	l := &c.layout.page
	switch {
	case p.mapping != i.mapping:
		return i.refuse(at.index, at.pages, WrongMapping, fmt.Errorf("page->mapping is %v", p.mapping))
	case p.pages == 0:
		return i.refuse(at.index, at.pages, BadFolio, nil)
	case !p.covers(at):
		return i.refuse(at.index, at.pages, WrongIndex, fmt.Errorf("page->index is %d, of a folio of %d pages", p.index, p.pages))
	case l.canPoison && p.has(l.poisoned):
		return i.refuse(at.index, at.pages, Poisoned, nil)
	}
	if err := c.findBroken(p, p.within(i, at)); err != nil {
		return i.refuse(at.index, at.pages, Unreadable, err)
	}
	return nil
}

// whole returns the part of a folio that an entry stands for: the entire folio, if the entry is its
// first. Where each page has its own entry (before multi-index entries, 5.17), any other entry stands
// for its own page only.
func whole(p *pageState, at slotted) Piece {
	from, end := p.unit.Byte(at.index-p.index), p.size()
	if from > 0 {
		end = p.unit.Byte(at.index - p.index + addr.Index(at.pages))
	}
	return p.piece(from, end)
}

// maxOrder bounds large folios: 1 GiB of pages of 4 KiB, as much as x86-64 can map as one page.
const maxOrder = 18

// page reads the struct page that an entry of a tree points to.
func (c *Cache) page(at addr.Virt) (*pageState, error) {
	l := &c.layout.page
	frame, err := c.k.PageFrame(at)
	if err != nil {
		return nil, err
	}
	b, err := c.k.Bytes(at, l.size)
	if err != nil {
		return nil, fmt.Errorf("read page: %w", err)
	}
	p := &pageState{
		unit:    c.k.Pages(),
		frame:   frame,
		pages:   1,
		flags:   l.flags.Uint(b),
		mapping: l.mapping.Pointer(b),
		index:   addr.Index(l.index.Uint(b)),
		private: l.private.Pointer(b),
	}
	p.writing = p.has(l.writeback)
	if !p.has(l.head) {
		return p, nil
	}
	if b, err = c.k.Bytes(at, l.folioSize); err != nil {
		return nil, fmt.Errorf("read folio: %w", err)
	}
	order := l.order.Uint(b)
	if order == 0 || order > maxOrder || uint64(frame)&(1<<order-1) != 0 {
		p.pages = 0 // the caller refuses it
		return p, nil
	}
	p.pages = 1 << order
	// All of it must be there, because it is handed out in one piece.
	if _, err := c.k.PageFrame(at + addr.Virt((p.pages-1)*uint64(l.size))); err != nil {
		return nil, err
	}
	return p, nil
}
