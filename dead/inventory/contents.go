package inventory

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/ram"
)

// Extent is a stretch of bytes of a file that is contiguous in the file and in
// physical memory.
type Extent struct {
	addr.Span
	Phys addr.Phys
}

// Contents are the bytes of a file that memory holds, within the file's size.
type Contents struct {
	Unsaved []Extent // ascending; not on the disk, or not known to be
	Clean   []Extent // ascending, none in Unsaved; the same as on the disk
	Refused []*pagecache.Refusal
}

// UnsavedBytes returns how many bytes are not on the disk.
func (c *Contents) UnsavedBytes() int64 { return total(c.Unsaved) }

// CleanBytes returns how many saved bytes are in memory.
func (c *Contents) CleanBytes() int64 { return total(c.Clean) }

func total(extents []Extent) int64 {
	n := int64(0)
	for _, e := range extents {
		n += e.Len()
	}
	return n
}

// Extents returns both kinds in ascending order.
func (c *Contents) Extents() []Extent {
	all := slices.Concat(c.Unsaved, c.Clean)
	slices.SortFunc(all, func(a, b Extent) int { return cmp.Compare(a.Off, b.Off) })
	return all
}

// contents collects what memory holds of an inode. Every byte of a file system
// without a disk is unsaved.
func (f *FileSystem) contents(i *pagecache.Inode, births *pagecache.Births, clean bool) Contents {
	var c Contents
	var seen map[addr.Index]bool // pages that are refused
	collect := func(into *[]Extent, walk func(func(pagecache.Piece, error) bool)) {
		for piece, err := range walk {
			var refusal *pagecache.Refusal
			switch {
			case errors.As(err, &refusal):
				if !seen[refusal.Index] {
					if seen == nil {
						seen = make(map[addr.Index]bool)
					}
					seen[refusal.Index] = true
					c.Refused = append(c.Refused, refusal)
				}
			case err != nil:
				c.Refused = append(c.Refused, &pagecache.Refusal{Inode: i.Ino, Reason: pagecache.Unreadable, Cause: err})
			default:
				*into = add(*into, Extent{Span: piece.Span.Clip(i.Size), Phys: piece.Phys})
			}
		}
	}
	if f.Super.InMemory() {
		collect(&c.Unsaved, f.image.Cache.Held(f.Super, i))
	} else {
		collect(&c.Unsaved, f.image.Cache.Unsaved(f.Super, i))
	}
	if f.Super.HasBuffers() {
		var logged []Extent
		collect(&logged, f.image.Cache.Logged(f.Super, i, births.Changed(i)))
		if len(logged) > 0 {
			c.Unsaved = (&Contents{Unsaved: c.Unsaved, Clean: subtract(logged, Spans(c.Unsaved))}).Extents()
		}
	}
	c.Unsaved = c.present(f.image, i, c.Unsaved)
	if f.Super.InMemory() {
		return c
	}
	if clean {
		var held []Extent
		collect(&held, f.image.Cache.Held(f.Super, i))
		taken := spans(c.Unsaved)
		for _, r := range c.Refused {
			taken = append(taken, RefusedSpan(r, i.Size))
		}
		c.Clean = c.present(f.image, i, subtract(held, normal(taken)))
	}
	return c
}

// present returns the parts of extents that are in the image, and notes the others
// as refused: a dump may have the page tables of the cache without its pages.
func (c *Contents) present(m *Image, i *pagecache.Inode, in []Extent) []Extent {
	if info := m.Info(); info.Excluded == 0 && !info.MissesCache() {
		return in
	}
	var out []Extent
	for _, e := range in {
		for at := e.Off; at < e.End; {
			to := min(e.End, addr.AlignUp(at+1))
			part := e.part(at, to)
			if _, err := m.mem.View(part.Phys, 1); err == nil {
				out = add(out, part)
			} else {
				c.gone(i, m.Kernel.Pages(), at, err)
			}
			at = to
		}
	}
	return out
}

// gone records a refusal of the page that has the byte at an offset: it is not in the image.
func (c *Contents) gone(i *pagecache.Inode, each addr.Pages, at int64, err error) {
	index := each.Index(at)
	if n := len(c.Refused); n > 0 {
		last := c.Refused[n-1]
		var fault *ram.Fault
		if last.Reason == pagecache.Unreadable && errors.As(last, &fault) && last.Pages > 0 && last.Index <= index && last.Index+addr.Index(last.Pages) >= index {
			last.Pages = uint64(index-last.Index) + 1
			return
		}
	}
	c.Refused = append(c.Refused, &pagecache.Refusal{Inode: i.Ino, Index: index, Pages: 1, Each: each, Reason: pagecache.Unreadable, Cause: err})
}

// add appends an extent, or extends the last one if both are contiguous.
func add(to []Extent, e Extent) []Extent {
	if e.Len() == 0 {
		return to
	}
	if n := len(to); n > 0 && to[n-1].End == e.Off && to[n-1].Phys+addr.Phys(to[n-1].Len()) == e.Phys {
		to[n-1].End = e.End
		return to
	}
	return append(to, e)
}

// RefusedSpan returns the bytes that a refusal is about, of a file of size bytes.
func RefusedSpan(r *pagecache.Refusal, size int64) addr.Span {
	if r.Pages == 0 {
		return addr.Span{End: size}
	}
	return r.Span().Clip(size)
}

func spans(extents []Extent) []addr.Span {
	out := make([]addr.Span, len(extents))
	for i, e := range extents {
		out[i] = e.Span
	}
	return out
}

// normal sorts spans and joins those that touch.
func normal(in []addr.Span) []addr.Span {
	slices.SortFunc(in, func(a, b addr.Span) int { return cmp.Compare(a.Off, b.Off) })
	var out []addr.Span
	for _, s := range in {
		switch n := len(out); {
		case s.Len() == 0:
		case n > 0 && s.Off <= out[n-1].End:
			out[n-1].End = max(out[n-1].End, s.End)
		default:
			out = append(out, s)
		}
	}
	return out
}

// Spans returns the spans of extents, sorted; those that touch are joined.
func Spans(extents []Extent) []addr.Span { return normal(spans(extents)) }

// Without returns the parts of the first size bytes that are in none of spans.
func Without(size int64, in []addr.Span) []addr.Span {
	var out []addr.Span
	at := int64(0)
	for _, s := range normal(slices.Clone(in)) {
		if gap := (addr.Span{Off: at, End: s.Off}).Clip(size); gap.Len() > 0 {
			out = append(out, gap)
		}
		at = s.End
	}
	if at < size {
		out = append(out, addr.Span{Off: at, End: size})
	}
	return out
}

// subtract returns the parts of extents that lie in none of the spans taken, which are normal.
func subtract(extents []Extent, taken []addr.Span) []Extent {
	var out []Extent
	for _, e := range extents {
		at := e.Off
		first, _ := slices.BinarySearchFunc(taken, e.Off, func(s addr.Span, off int64) int { return cmp.Compare(s.End, off+1) })
		for _, s := range taken[first:] {
			if s.Off >= e.End {
				break
			}
			out = add(out, e.part(at, s.Off))
			at = max(at, s.End)
		}
		out = add(out, e.part(at, e.End))
	}
	return out
}

// part returns the bytes of e within [from, to).
func (e Extent) part(from, to int64) Extent {
	from, to = max(from, e.Off), min(to, e.End)
	return Extent{Span: addr.Span{Off: from, End: max(from, to)}, Phys: e.Phys + addr.Phys(from-e.Off)}
}

// maxView bounds how much memory is looked at in one piece, in bytes.
const maxView = 1 << 20

// Each calls do for the bytes of an extent, in ascending order, without copying
// them. It calls gone for pages that turn out to be absent.
func (m *Image) Each(e Extent, do func(off int64, b []byte) error, gone func(addr.Span, error) error) error {
	for at := e.Off; at < e.End; {
		n := min(maxView, e.End-at)
		b, err := m.mem.View(e.Phys+addr.Phys(at-e.Off), int(n))
		var fault *ram.Fault
		switch {
		case err == nil:
			err = do(at, b)
		case !errors.As(err, &fault):
			return fmt.Errorf("read memory: %w", err)
		case n > addr.PageSize:
			// Find out which of its pages is absent. Extents may begin within a page.
			n = min(n, addr.PageSize-int64(uint64(e.Phys)+uint64(at-e.Off))%addr.PageSize)
			if b, err = m.mem.View(e.Phys+addr.Phys(at-e.Off), int(n)); err == nil {
				err = do(at, b)
			} else {
				err = gone(addr.Span{Off: at, End: at + n}, err)
			}
		default:
			err = gone(addr.Span{Off: at, End: at + n}, err)
		}
		if err != nil {
			return err
		}
		at += n
	}
	return nil
}

// ErrAbsent says that memory does not hold a byte of a file.
var ErrAbsent = errors.New("not in memory")

// ReadAt reads bytes of a file that memory holds. It returns io.EOF at the end of
// the file, and ErrAbsent if memory does not hold a byte of an extent after all.
// extents must be ascending; fill reads the bytes that are in none of them, or
// returns an error, which ReadAt returns.
func (m *Image) ReadAt(dst []byte, off, size int64, extents []Extent, fill func(dst []byte, off int64) error) (int, error) {
	if off >= size {
		return 0, io.EOF
	}
	dst = dst[:min(int64(len(dst)), size-off)]
	end := off + int64(len(dst))
	next, _ := slices.BinarySearchFunc(extents, off, func(e Extent, off int64) int { return cmp.Compare(e.End, off+1) })
	for at := off; at < end; {
		to := end
		if next < len(extents) && extents[next].Off <= at {
			e := extents[next].part(at, end)
			if err := m.copy(dst[at-off:], e); err != nil {
				return 0, err
			}
			at, next = e.End, next+1
			continue
		}
		if next < len(extents) {
			to = min(to, extents[next].Off)
		}
		if err := fill(dst[at-off:to-off], at); err != nil {
			return 0, err
		}
		at = to
	}
	return len(dst), nil
}

func (m *Image) copy(dst []byte, e Extent) error {
	return m.Each(e, func(off int64, b []byte) error {
		copy(dst[off-e.Off:], b)
		return nil
	}, func(_ addr.Span, err error) error { return errors.Join(ErrAbsent, err) })
}
