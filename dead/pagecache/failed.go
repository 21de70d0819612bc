package pagecache

import (
	"cmp"
	"errors"
	"iter"
	"slices"

	"understudy.dev/understudy/dead/addr"
)

// wentWrong reports whether an errseq_t has ever held an error: its lower 12 bits are the
// last one, and only a new inode or superblock begins with none (lib/errseq.c). When a write
// of a page ends with an error, the kernel sets the errseq_t of the mapping and, since 5.8,
// that of the superblock (include/linux/pagemap.h, mapping_set_error).
func wentWrong(errseq uint64) bool { return errseq&0xfff != 0 }

// ErrWriteFailed is the cause of the refusals of bytes that memory no longer holds, of a file of
// which a write to its disk failed.
var ErrWriteFailed = errors.New("what memory no longer holds of it may be older on the disk: compare it with a backup")

// rewritten yields what memory holds of a file of which a write has failed. The failure left
// the pages marked clean (fs/ext4/page-io.c, ext4_finish_bio; fs/iomap,
// iomap_finish_ioend), although only memory has them. The kernel does not record which pages
// they were: all pages count as unsaved, and what memory does not hold is refused, since a page
// that was dropped as clean may have been one of them. So is a page that is no longer uptodate,
// as btrfs marks them after a failure (fs/btrfs/extent_io.c, end_extent_writepage of 6.1).
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
