package salvage

import (
	"cmp"
	"errors"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
)

// content fills in the runs of a regular file, and what lies between them.
func (w *diskWalk) content(i *pagecache.Inode, f *File) error {
	if !i.Regular() {
		return nil
	}
	pieces, refused := w.pieces(i, f.Metadata)
	for _, piece := range pieces {
		f.take(piece)
	}
	if why := w.p.unfit(i); why != 0 {
		if len(f.Runs) > 0 || !f.Metadata.Committed {
			return &pagecache.Refusal{Inode: i.Ino, Path: f.Path, Reason: why}
		}
		return nil
	}
	for _, r := range refused {
		w.p.noteOf(f.Path, r)
	}
	if f.Metadata.Committed {
		return nil
	}
	gaps := gapsOf(f.spans(), f.Size)
	// What was refused must not count as zeros, nor as being on the disk.
	var bad []addr.Span
	for _, err := range refused {
		var r *pagecache.Refusal
		if errors.As(err, &r) && r.Pages > 0 {
			bad = append(bad, r.Span())
		} else {
			bad = []addr.Span{{End: f.Size}}
		}
	}
	return w.rest(i, f.Metadata, gaps, bad)
}

// rest classifies the bytes that are not in memory: on the disk, zeros, mapped or unknown.
func (w *diskWalk) rest(i *pagecache.Inode, l *Metadata, gaps, bad []addr.Span) error {
	if l.Kept || len(gaps) == 0 {
		l.Kept = len(gaps) > 0
		return nil
	}
	mapped, err := w.mapping(i)
	if err != nil {
		l.Unknown, l.Unmapped = gaps, err
		return nil
	}
	for _, gap := range gaps {
		l.divide(gap, mapped, bad)
	}
	return nil
}

// mapping returns where a file lies on its device.
func (w *diskWalk) mapping(i *pagecache.Inode) ([]pagecache.Mapped, error) {
	if w.xfs != nil {
		return w.xfs.Mapping(i)
	}
	if bare, err := w.btrfs.Bare(i); err != nil || bare {
		return nil, err
	}
	return w.btrfs.Mapping(i)
}

// divide divides a gap into zeros, mapped and unknown bytes.
func (l *Metadata) divide(gap addr.Span, mapped []pagecache.Mapped, bad []addr.Span) {
	for _, b := range bad {
		if cut := overlap(gap, b); cut.Len() > 0 {
			l.Unknown = append(l.Unknown, gap)
			return
		}
	}
	at := gap.Off
	for _, m := range mapped {
		part := overlap(addr.Span{Off: at, End: gap.End}, m.Span)
		if part.Len() == 0 {
			continue
		}
		if zero := (addr.Span{Off: at, End: part.Off}); zero.Len() > 0 {
			l.Zeros = append(l.Zeros, zero)
		}
		switch {
		case m.Unwritten:
			l.Zeros = append(l.Zeros, part)
		case m.Disk == pagecache.Delayed:
			l.Unknown = append(l.Unknown, part)
		default:
			l.Mapped = append(l.Mapped, pagecache.Mapped{Span: part, Disk: m.Disk + part.Off - m.Off})
		}
		at = part.End
	}
	if zero := (addr.Span{Off: at, End: gap.End}); zero.Len() > 0 {
		l.Zeros = append(l.Zeros, zero)
	}
}

func overlap(a, b addr.Span) addr.Span {
	return addr.Span{Off: max(a.Off, b.Off), End: min(a.End, b.End)}
}

// gapsOf returns the parts of the first size bytes that are in none of the spans, which ascend.
func gapsOf(spans []addr.Span, size int64) []addr.Span {
	var out []addr.Span
	at := int64(0)
	for _, s := range spans {
		if s.Off > at {
			out = append(out, addr.Span{Off: at, End: s.Off})
		}
		at = max(at, s.End)
	}
	if at < size {
		out = append(out, addr.Span{Off: at, End: size})
	}
	return out
}

// pieces returns what memory holds of a file, ascending and without overlaps: unsaved
// bytes, and, unless the file is committed, saved ones. If the disk is known to have all the
// rest, saved bytes are only those from the last block on that has content on the disk.
func (w *diskWalk) pieces(i *pagecache.Inode, l *Metadata) ([]pagecache.Piece, []error) {
	var out []pagecache.Piece
	var refused []error
	for piece, err := range w.c.Unsaved(w.s, i) {
		if err != nil {
			refused = append(refused, err)
			continue
		}
		out = append(out, piece)
	}
	if l.Committed {
		return out, refused
	}
	from := int64(0)
	if l.Kept = len(refused) == 0 && w.kept(i); l.Kept {
		from = w.lastBlock(i)
	}
	unsaved := len(out)
	for piece, err := range w.c.HeldFrom(w.s, i, from) {
		if err != nil {
			continue // for an unsaved page that was reported already; a saved one counts as absent
		}
		cut := max(from-piece.Off, 0)
		piece.Off, piece.Phys = piece.Off+cut, piece.Phys+addr.Phys(cut)
		out = append(out, without(piece, out[:unsaved])...)
	}
	byOffset := func(a, b pagecache.Piece) int { return cmp.Compare(a.Off, b.Off) }
	slices.SortFunc(out, byOffset)
	if w.btrfs != nil && !l.Kept && i.Size <= maxInline && len(gapsOf(spansOf(out), i.Size)) > 0 {
		inline, _ := w.btrfs.Inline(i) // without it, less is known
		held := len(out)
		for _, piece := range inline {
			out = append(out, without(piece, out[:held])...)
		}
		slices.SortFunc(out, byOffset)
	}
	return out, refused
}

func spansOf(pieces []pagecache.Piece) []addr.Span {
	out := make([]addr.Span, len(pieces))
	for n, p := range pieces {
		out[n] = p.Span
	}
	return out
}

// maxInline bounds the content of a btrfs file that is in the tree itself: it is less than a block.
const maxInline = pagecache.MaxBlock

// kept reports whether the disk has everything of a file that is not unsaved, as far as the file
// system tells, except what was written beyond the size that the disk knows (lastBlock).
func (w *diskWalk) kept(i *pagecache.Inode) bool {
	if w.xfs != nil {
		kept, err := w.xfs.Kept(i)
		return err == nil && kept
	}
	bare, err := w.btrfs.Bare(i)
	if err != nil || bare {
		return false
	}
	kept, err := w.btrfs.Kept(i)
	return err == nil && kept
}

// lastBlock returns where the last block of a file begins that has content on the disk, as far as that is known.
// Bytes that were appended in that block need no other extent, so the disk may have them beyond the size that it
// knows of the file. There they are lost: when a file is extended, the bytes behind its old end are zeroed.
func (w *diskWalk) lastBlock(i *pagecache.Inode) int64 {
	end := i.Size
	if w.xfs != nil {
		mapped, _ := w.xfs.Mapping(i) // kept read it before
		end = 0
		for _, m := range mapped {
			if !m.Unwritten && m.Disk != pagecache.Delayed && m.Off < i.Size {
				end = min(m.End, i.Size)
			}
		}
	}
	block := max(addr.PageSize, int64(w.s.BlockSize))
	return max(end-1, 0) / block * block
}

// without returns the parts of a piece that are in none of the others, which
// ascend.
func without(p pagecache.Piece, others []pagecache.Piece) []pagecache.Piece {
	var out []pagecache.Piece
	at := p.Off
	first, _ := slices.BinarySearchFunc(others, p.Off, func(o pagecache.Piece, off int64) int { return cmp.Compare(o.End, off+1) })
	add := func(to int64) {
		if at < to {
			out = append(out, pagecache.Piece{Span: addr.Span{Off: at, End: to}, Phys: p.Phys + addr.Phys(at-p.Off)})
		}
	}
	for _, o := range others[first:] {
		if o.Off >= p.End {
			break
		}
		add(min(o.Off, p.End))
		at = max(at, o.End)
	}
	add(p.End)
	return out
}
