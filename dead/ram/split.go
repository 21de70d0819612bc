package ram

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"iter"
	"os"
	"slices"

	"understudy.dev/understudy/dead/addr"
)

// splitMax bounds the number of parts of a split dump: makedumpfile is given the name of each.
const splitMax = 1024

const splitName = "split dump"

var errOtherDump = &FormatError{Format: splitName, Reason: "the files are not of one dump"}

// kdumpParts are the pages of a dump that makedumpfile --split wrote to several files.
// Each file has the header and both bitmaps of all memory, and descriptors and data of the
// frames from its start_pfn up to, but without, its end_pfn (makedumpfile(8), --split;
// diskdump_mod.h, struct kdump_sub_header).
type kdumpParts []*kdumpPages

// OpenFiles opens the memory of a machine that is in several files: those that makedumpfile
// --split wrote, all of them, in any order. A single file is opened as by OpenFile.
func OpenFiles(paths ...string) (Memory, error) {
	switch {
	case len(paths) == 1:
		return OpenFile(paths[0])
	case len(paths) == 0 || len(paths) > splitMax:
		return nil, fmt.Errorf("open memory: %d files are none, or too many for a split dump", len(paths))
	}
	var opened inputs
	m, err := opened.openParts(paths)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open memory: %w", err), opened.Close())
	}
	return m, nil
}

func (in *inputs) openParts(paths []string) (Memory, error) {
	parts := make(kdumpParts, len(paths))
	images := make([]image, len(paths))
	for i, path := range paths {
		part, err := openPart(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		*in = append(*in, part)
		if parts[i], images[i], err = readKdump(part); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if !parts[i].header.split {
			return nil, fmt.Errorf("%s: %w", path, malformed(kdumpName, "it is no part of a split dump: open it as the only file"))
		}
	}
	im := images[0]
	for _, other := range images {
		if !bytes.Equal(other.notes, im.notes) || !bytes.Equal(other.note, im.note) {
			return nil, errOtherDump
		}
	}
	im.info.Format += fmt.Sprintf(" in %d files", len(paths))
	for _, other := range images[1:] {
		im.info.Incomplete = im.info.Incomplete || other.info.Incomplete
		im.info.Truncated = im.info.Truncated || other.info.Truncated
	}
	slices.SortFunc(parts, func(a, b *kdumpPages) int { return cmp.Compare(a.header.start, b.header.start) })
	if err := parts.check(); err != nil {
		return nil, err
	}
	return newPaged(*in, parts, im), nil
}

// openPart opens a file that may be compressed, or flattened.
func openPart(path string) (input, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	in, packed, err := unpacked(f)
	if err != nil || packed != "" {
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return nil, err
	}
	part, err := unflattened(in)
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	return part, nil
}

func unflattened(in input) (input, error) {
	head, err := readHead(in)
	if err == nil && bytes.HasPrefix(head, []byte(flatMagic)) {
		if in, err = openFlat(in); err == nil {
			head, err = readHead(in)
		}
	}
	if err == nil && !bytes.HasPrefix(head, []byte(kdumpMagic)) {
		err = malformed("one of several files", "it is no kdump-compressed file, and nothing else comes in parts")
	}
	return in, err
}

// check checks that sorted parts are of one dump, and together have all of it.
func (p kdumpParts) check() error {
	next := uint64(0)
	for _, k := range p {
		switch h := k.header; {
		case h.pages != p[0].header.pages || h.block != p[0].header.block || !k.dumped.equal(p[0].dumped) || !k.all.equal(p[0].all):
			return errOtherDump
		case h.start < next:
			return malformed(splitName, "two of the files have page frame %#x", h.start)
		case h.start > next:
			return p.missing(next, h.start)
		}
		next = k.header.end
	}
	if pages := p[0].header.pages; next < pages {
		return p.missing(next, pages)
	}
	return nil
}

// missing returns the error for frames that no file has. There is none if the dump has no memory there.
func (p kdumpParts) missing(start, end uint64) error {
	if p[0].dumped.next(addr.PFN(start), addr.PFN(end), true) == addr.PFN(end) {
		return nil
	}
	return &FormatError{
		Format: splitName,
		Reason: fmt.Sprintf("the part with page frames %#x to %#x is missing", start, end),
		Hint:   "name all of its parts, one after the other",
	}
}

// part returns the part that has a frame; nil if none does.
func (p kdumpParts) part(pfn addr.PFN) *kdumpPages {
	i, _ := slices.BinarySearchFunc(p, uint64(pfn), func(k *kdumpPages, pfn uint64) int {
		if k.header.end <= pfn {
			return -1
		}
		return 1
	})
	if i == len(p) || p[i].header.start > uint64(pfn) {
		return nil
	}
	return p[i]
}

func (p kdumpParts) find(pa addr.Phys) (int64, addr.PhysRange, bool) { return p[0].find(pa) }

func (p kdumpParts) present(pa addr.Phys, n int) (addr.Phys, bool) { return p[0].present(pa, n) }

func (p kdumpParts) decode(number int64, dst []byte) error {
	k := p.part(addr.PFN(number))
	if k == nil {
		return errLost
	}
	return k.decode(number, dst)
}

func (p kdumpParts) touched(r addr.PhysRange) iter.Seq[addr.PhysRange] {
	return func(yield func(addr.PhysRange) bool) {
		for _, k := range p {
			part := addr.PhysRange{Start: max(r.Start, k.header.phys(addr.PFN(k.header.start))), End: min(r.End, k.header.phys(addr.PFN(k.header.end)))}
			if part.Start >= part.End {
				continue
			}
			for touched := range k.touched(part) {
				if !yield(touched) {
					return
				}
			}
		}
	}
}

// inputs are the files of one memory. They have no content of their own.
type inputs []input

func (in inputs) ReadAt([]byte, int64) (int, error) { return 0, errGap }
func (in inputs) Size() int64                       { return 0 }

func (in inputs) Close() error {
	var errs []error
	for _, i := range in {
		errs = append(errs, i.Close())
	}
	return errors.Join(errs...)
}
