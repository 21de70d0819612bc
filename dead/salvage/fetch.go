package salvage

import (
	"cmp"
	"io"
	"slices"

	"understudy.dev/understudy/dead/addr"
)

// maxFetched bounds what is read from a disk for all files of a plan, in bytes: it is kept in memory, and written again.
const maxFetched = 64 << 20

// fetch reads content of files from the disk of an XFS, before it is mounted: that in extents that a log recovery may not bring, whose
// pages the kernel had dropped. Only memory knows where it lies, and a mount may put something else there. It is on the disk: XFS maps
// an extent as unwritten until its data is written (fs/xfs/libxfs/xfs_bmap.c, xfs_bmapi_convert_one_delalloc). Files with more of
// it than there is room for are left as they are: then the disk must have their extents.
func (p *Plan) fetch(disk io.ReaderAt) {
	if p.Super.Type != "xfs" {
		return
	}
	left, fetched := int64(maxFetched), false
	for i := range p.Files {
		f := &p.Files[i]
		if f.Metadata == nil || len(f.Metadata.Mapped) == 0 {
			continue
		}
		n := int64(0)
		for _, m := range f.Metadata.Mapped {
			n += min(m.Len(), left+1)
		}
		if n <= left && f.fetch(disk) {
			left, fetched = left-n, true
		}
	}
	if fetched {
		p.stage()
	}
}

// fetch makes runs of what is mapped of a file. It reports whether all of that could be read.
func (f *File) fetch(disk io.ReaderAt) bool {
	var out []spanned
	for _, m := range f.Metadata.Mapped {
		b := make([]byte, m.Len())
		if _, err := disk.ReadAt(b, m.Disk); err != nil {
			return false
		}
		out = append(out, spanned{m.Span, segment{n: m.Len(), disk: b}})
	}
	for _, r := range f.Runs {
		at := r.Off
		for _, s := range r.segments {
			out = append(out, spanned{addr.Span{Off: at, End: at + s.n}, s})
			at += s.n
		}
	}
	slices.SortFunc(out, func(a, b spanned) int { return cmp.Compare(a.Off, b.Off) })
	f.Runs, f.Metadata.Mapped = nil, nil
	for _, s := range out {
		f.add(s)
	}
	return true
}
