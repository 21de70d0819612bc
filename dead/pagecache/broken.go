package pagecache

import (
	"fmt"

	"understudy.dev/understudy/dead/addr"
)

// findBroken adds to p.broken the pages of a large folio whose memory is broken, among those that
// hold the bytes within: the kernel marks the struct page of each (mm/memory-failure.c,
// memory_failure), and then tries to split the folio.
func (c *Cache) findBroken(p *pageState, within addr.Span) error {
	l := &c.layout.page
	first := p.unit.Index(within.Off)
	n := int(p.unit.End(within.End) - first)
	if !l.canPoison || p.pages == 1 || within.Len() == 0 {
		return nil
	}
	b, err := c.k.Bytes(c.k.PageStruct(p.frame+addr.PFN(first)), n*l.size)
	if err != nil {
		return fmt.Errorf("read pages of folio: %w", err)
	}
	for i := range n {
		if l.flags.Uint(b[i*l.size:])>>l.poisoned&1 == 1 {
			p.broken = append(p.broken, p.index+first+addr.Index(i))
		}
	}
	return nil
}

// unbroken returns an error if any of the memory that holds the bytes within of a folio is broken.
func (c *Cache) unbroken(p *pageState, within addr.Span) error {
	err := c.findBroken(p, within)
	if err == nil && (len(p.broken) > 0 || c.layout.page.canPoison && p.has(c.layout.page.poisoned)) {
		err = fmt.Errorf("page frame %d is hardware-poisoned, or is in a folio that is", p.frame)
	}
	return err
}

// within returns the bytes of a folio that an entry stands for, up to the end of the file.
func (p *pageState) within(i *Inode, at slotted) addr.Span {
	s := whole(p, at).Clip(i.Size)
	return addr.Span{Off: s.Off - p.start(), End: s.End - p.start()}
}

// intact wraps yield so that parts of a piece that lie in broken pages of the folio are refused.
func (p *pageState) intact(i *Inode, yield func(Piece, error) bool) func(Piece, error) bool {
	if len(p.broken) == 0 {
		return yield
	}
	return func(piece Piece, err error) bool {
		if err != nil {
			return yield(piece, err)
		}
		for _, at := range p.broken {
			bad := addr.Span{Off: p.unit.Byte(at), End: p.unit.Byte(at + 1)}
			if bad.End <= piece.Off || bad.Off >= piece.End {
				continue
			}
			if !yield(piece.part(piece.Off, bad.Off), nil) || !yield(Piece{}, i.refuse(at, 1, Poisoned, nil)) {
				return false
			}
			piece = piece.part(bad.End, piece.End)
		}
		return yield(piece, nil)
	}
}

// part returns the part of a piece that lies between two offsets in the file.
func (p Piece) part(from, to int64) Piece {
	from, to = max(from, p.Off), min(to, p.End)
	return Piece{Span: addr.Span{Off: from, End: max(from, to)}, Phys: p.Phys + addr.Phys(from-p.Off), Writeback: p.Writeback}
}
