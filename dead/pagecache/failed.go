package pagecache

import (
	"cmp"
	"errors"
	"iter"
	"slices"

	"understudy.dev/understudy/dead/addr"
)

// wentWrong reports whether an errseq_t has ever held an error: its lower 12 bits are the
// last one, and only a new inode or superblock begins with none (lib/errseq.c). The kernel
// sets that of a mapping and, since 5.8, that of the superblock where a write of a page
// ends with an error (include/linux/pagemap.h, mapping_set_error).
func wentWrong(errseq uint64) bool { return errseq&0xfff != 0 }

// ErrWriteFailed says what there is to a file of which a write to its disk failed.
var ErrWriteFailed = errors.New("what memory no longer holds of it may be older on the disk: compare it with a backup")

// rewritten yields what memory holds of a file of which a write has failed. Its pages have
// been marked clean by that (fs/ext4/page-io.c, ext4_finish_bio; fs/iomap,
// iomap_finish_ioend), and are nowhere but in memory. Which pages it was is not kept: all
// of them count as unsaved, and what memory does not hold is refused, since a page that was
// thrown away, taken for clean, may have been one of them. So is one that is not filled any
// more, as btrfs marks them then (fs/btrfs/extent_io.c, end_extent_writepage of 6.1).
func (c *Cache) rewritten(s *Superblock, i *Inode) iter.Seq2[Piece, error] {
	return func(yield func(Piece, error) bool) {
		var known []addr.Span
		for p, err := range c.All(s, i) {
			var r *Refusal
			if errors.As(err, &r) {
				known = append(known, r.Span())
			} else {
				known = append(known, p.Span)
			}
			if !yield(p, err) {
				return
			}
		}
		slices.SortFunc(known, func(a, b addr.Span) int { return cmp.Compare(a.Off, b.Off) })
		at := int64(0)
		for _, k := range append(known, addr.Span{Off: i.Size, End: i.Size}) {
			if first, end := i.unit.Index(at), i.unit.End(k.Off); at < k.Off &&
				!yield(Piece{}, i.refuse(first, uint64(end-first), WriteFailed, ErrWriteFailed)) {
				return
			}
			at = max(at, k.End)
		}
	}
}
