package inventory

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/salvage"
)

// Backing knows the bytes of files that memory does not hold: from the disk, or as holes.
type Backing struct {
	fs     *FileSystem
	device *pagecache.Device // nil if block mappings cannot be read
	disk   io.ReaderAt       // nil if there is none
}

// Backing opens what lies behind the files of a file system. disk is the image of
// its device, as the crash left it, or nil: then some holes are still known, from
// the block mappings that memory has. If the disk was written to since the crash,
// the error wraps salvage.ErrDiskChanged.
func (f *FileSystem) Backing(disk io.ReaderAt) (*Backing, error) {
	b := &Backing{fs: f}
	if !f.Super.HasBuffers() {
		if disk != nil {
			return nil, fmt.Errorf("read disk of %s: %s: %w", f.Device, f.Super.Type, ErrUnsupported)
		}
		return b, nil
	}
	device, err := f.image.Cache.Device(f.Super, disk)
	if disk == nil {
		b.device = device // nil after an error: then holes are not known
		return b, nil
	}
	if err == nil {
		err = device.Maps()
	}
	if err != nil {
		return nil, fmt.Errorf("read disk of %s: %w", f.Device, err)
	}
	plan, err := salvage.Of(f.image.Cache, f.Super)
	if err != nil {
		return nil, err
	}
	if err := plan.Check(disk); err != nil {
		return nil, fmt.Errorf("read disk of %s: %w", f.Device, err)
	}
	b.device, b.disk = device, disk
	return b, nil
}

// Rest describes the parts of a file that memory does not hold.
type Rest struct {
	Holes  []addr.Span // ascending; known to be zeros
	mapped []pagecache.Mapped
	disk   io.ReaderAt
}

// Of returns the rest of a file. Refused parts of the file are not in it.
func (b *Backing) Of(f *File) Rest {
	taken := Spans(f.Extents())
	for _, r := range f.Refused {
		taken = append(taken, RefusedSpan(r, f.Size))
	}
	if b.fs.Super.InMemory() {
		return Rest{Holes: Without(f.Size, taken)}
	}
	gaps := Without(f.Size, taken)
	if b.device == nil || len(gaps) == 0 {
		return Rest{}
	}
	mapped, err := b.device.Mapping(f.Inode)
	if err != nil {
		return Rest{}
	}
	rest := Rest{disk: b.disk}
	for _, m := range mapped {
		if !m.Unwritten {
			taken = append(taken, m.Span)
			rest.mapped = append(rest.mapped, m)
		}
	}
	rest.Holes = Without(f.Size, taken)
	// Refused bytes are not taken from the disk either: they may be older there.
	for _, r := range f.Refused {
		rest.mapped = cut(rest.mapped, RefusedSpan(r, f.Size))
	}
	return rest
}

// cut removes a span from a block mapping.
func cut(mapped []pagecache.Mapped, s addr.Span) []pagecache.Mapped {
	var out []pagecache.Mapped
	for _, m := range mapped {
		for _, keep := range []addr.Span{{Off: m.Off, End: min(m.End, s.Off)}, {Off: max(m.Off, s.End), End: m.End}} {
			if keep.Len() > 0 {
				out = append(out, pagecache.Mapped{Span: keep, Disk: m.Disk + keep.Off - m.Off})
			}
		}
	}
	return out
}

// Fill reads bytes that memory does not hold. ErrAbsent means that they are not
// known.
func (r *Rest) Fill(dst []byte, off int64) error {
	for len(dst) > 0 {
		n := 0
		if s, ok := around(r.Holes, off, func(s addr.Span) addr.Span { return s }); ok {
			n = int(min(int64(len(dst)), s.End-off))
			clear(dst[:n])
		} else if m, ok := around(r.mapped, off, func(m pagecache.Mapped) addr.Span { return m.Span }); ok && r.disk != nil {
			n = int(min(int64(len(dst)), m.End-off))
			if _, err := r.disk.ReadAt(dst[:n], m.Disk+off-m.Off); err != nil {
				return errors.Join(ErrAbsent, err)
			}
		} else {
			return ErrAbsent
		}
		dst, off = dst[n:], off+int64(n)
	}
	return nil
}

// around returns the element of in whose span covers an offset. The elements ascend.
func around[T any](in []T, off int64, span func(T) addr.Span) (T, bool) {
	i, _ := slices.BinarySearchFunc(in, off, func(t T, off int64) int { return cmp.Compare(span(t).End, off+1) })
	if i < len(in) && span(in[i]).Off <= off {
		return in[i], true
	}
	var none T
	return none, false
}
