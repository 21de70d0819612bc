package pagecache

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"understudy.dev/understudy/dead/addr"
)

// The items that say where a file lies (include/uapi/linux/btrfs_tree.h, struct btrfs_file_extent_item): their key and, in bytes,
// their size; and the types that they have.
const (
	btrfsExtentKey    = 108 // BTRFS_EXTENT_DATA_KEY
	btrfsExtentSize   = 53
	btrfsExtentHeader = 21 // of one that has the data in itself

	btrfsInline   = 0 // BTRFS_FILE_EXTENT_INLINE
	btrfsRegular  = 1
	btrfsPrealloc = 2
)

// Mapping returns where a regular file lies, in the file system's own (logical) addresses, ascending, as the kernel had it in the tree
// of its subvolume. What is not mapped is zeros. A stretch of which memory does not tell it, that was being written, that is
// compressed, or that is in the tree itself (Inline) has Delayed for its Disk.
func (f *Btrfs) Mapping(i *Inode) ([]Mapped, error) {
	m, err := f.mapping(i)
	if err != nil {
		return nil, fmt.Errorf("map inode %d: %w: %w", i.Ino, ErrMapping, err)
	}
	return m.out, nil
}

// Inline returns the content of a file that is in the tree itself, as memory has it there; nothing if none is.
func (f *Btrfs) Inline(i *Inode) ([]Piece, error) {
	m, err := f.mapping(i)
	if err != nil {
		return nil, fmt.Errorf("map inode %d: %w: %w", i.Ino, ErrMapping, err)
	}
	page := f.c.k.Pages().Size()
	var out []Piece
	for off := int64(0); off < int64(len(m.inline)); {
		at := int64(m.inlineAt) + off
		n := min(int64(len(m.inline))-off, page-at%page)
		p, within, err := m.cache.pageOf(at, int(n))
		if err != nil {
			return nil, fmt.Errorf("map inode %d: %w", i.Ino, err)
		}
		out = append(out, Piece{Span: addr.Span{Off: off, End: off + n}, Phys: p.phys() + addr.Phys(within)})
		off += n
	}
	return out, nil
}

// Link returns the target of a symbolic link, which is in the tree itself (fs/btrfs/inode.c, btrfs_symlink).
func (f *Btrfs) Link(i *Inode) (string, error) {
	m, err := f.mapping(i)
	if err == nil && (i.Size < 1 || i.Size != int64(len(m.inline)) || bytes.IndexByte(m.inline, 0) >= 0) {
		err = fmt.Errorf("its size is %d bytes, and those in its tree are %d", i.Size, len(m.inline))
	}
	if err != nil {
		return "", fmt.Errorf("read link of inode %d: %w", i.Ino, err)
	}
	return string(m.inline), nil
}

func (f *Btrfs) mapping(i *Inode) (*btrfsMap, error) {
	l := f.layout
	b, err := f.own(i)
	switch {
	case err != nil:
		return nil, err
	case l.trees.err != nil:
		return nil, l.trees.err
	case !l.changing.Free(b):
		// What replaces extents by several changes of the tree (fallocate, a clone, a deduplication) holds i_mmap_lock, as does fsync
		// (fs/btrfs/file.c, reflink.c). A write does not: what it changes of the tree is in an ordered extent. Nor does truncate, which sets
		// i_size first.
		return nil, errors.New("its extents were being replaced, or it was being synced, when the kernel died")
	}
	at, err := f.treeOf(b)
	if err != nil {
		return nil, err
	}
	w := &btrfsMap{ino: i.Ino, block: f.s.BlockSize}
	if w.btrfsBlocks, err = f.blocks(); err != nil {
		return nil, err
	}
	top, err := w.read(at)
	if err == nil {
		err = w.below(top, addr.Span{End: math.MaxInt64})
	}
	if err != nil {
		return nil, err
	}
	writing, err := f.writing(b)
	if err != nil {
		return nil, fmt.Errorf("ordered extents: %w", err)
	}
	if len(writing) > 0 {
		w.out = replaced(w.out, writing)
		if writing[0].Off == 0 {
			w.inline = nil
		}
	}
	return w, nil
}

// writing returns the stretches of a file that were being written, or of which the tree did not have the new place yet, ascending. own is
// what own returned for the inode.
func (f *Btrfs) writing(own []byte) ([]addr.Span, error) {
	l := f.layout
	root := l.ordered.Pointer(own)
	switch {
	case root == 0:
		return nil, nil
	case l.orderedErr != nil:
		return nil, l.orderedErr
	case !l.orderedLock.Free(own):
		return nil, errors.New("they were being changed when the kernel died")
	}
	var out []addr.Span
	for b, err := range f.c.inOrder(root, l.orderedNodes) {
		if err != nil {
			return nil, err
		}
		off, length := l.orderedOff.Uint(b), l.orderedLen.Uint(b)
		if length == 0 || off > math.MaxInt64 || length > math.MaxInt64-off || len(out) > 0 && int64(off) < out[len(out)-1].End {
			return nil, fmt.Errorf("one of %d bytes at %d", length, off)
		}
		out = append(out, addr.Span{Off: int64(off), End: int64(off + length)})
	}
	return out, nil
}

// replaced returns a mapping in which some stretches, which ascend, have Delayed for their Disk.
func replaced(was []Mapped, stretches []addr.Span) []Mapped {
	var out []Mapped
	rest := stretches
	for _, m := range was {
		for len(rest) > 0 && rest[0].End <= m.Off {
			rest = rest[1:]
		}
		for _, s := range rest {
			if s.Off >= m.End {
				break
			}
			if s.Off > m.Off {
				out = append(out, m.cut(addr.Span{Off: m.Off, End: s.Off}))
			}
			m = m.cut(addr.Span{Off: min(s.End, m.End), End: m.End})
		}
		if m.Len() > 0 {
			out = append(out, m)
		}
	}
	for _, s := range stretches {
		out = append(out, Mapped{Span: s, Disk: Delayed})
	}
	slices.SortFunc(out, func(a, b Mapped) int { return cmp.Compare(a.Off, b.Off) })
	return out
}

// cut returns the part of an extent that is in a stretch of it.
func (m Mapped) cut(s addr.Span) Mapped {
	if m.Disk != Delayed {
		m.Disk += s.Off - m.Off
	}
	m.Span = s
	return m
}

// btrfsMap collects the extents of one file.
type btrfsMap struct {
	*btrfsBlocks
	ino      addr.Ino
	block    uint64 // size, in bytes
	out      []Mapped
	inline   []byte // the file's first bytes, if they are in the tree itself
	inlineAt uint64 // where they are, in the file system's own addresses
}

// below collects what a block, and those below it, have of the stretch of the file that is theirs.
func (w *btrfsMap) below(t *btrfsBlock, own addr.Span) error {
	if err := w.still(t); err != nil {
		return err
	}
	if t.level == 0 {
		return w.leaf(t.at, t.raw)
	}
	for n, c := range t.children {
		part := own
		if n > 0 {
			part.Off = max(part.Off, w.position(c.key))
		}
		if n+1 < len(t.children) {
			part.End = min(part.End, w.position(t.children[n+1].key))
		}
		if part.Off >= part.End {
			continue
		}
		child, err := w.child(t, c)
		switch {
		case errors.Is(err, ErrNotCached):
			err = w.add(Mapped{Span: part, Disk: Delayed})
		case err == nil:
			err = w.below(child, part)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// position returns from which byte of the file on the items have a key, or a higher one.
func (w *btrfsMap) position(k btrfsKey) int64 {
	switch {
	case k.ino < w.ino || k.ino == w.ino && k.kind < btrfsExtentKey:
		return 0
	case k.ino > w.ino || k.kind > btrfsExtentKey || k.off > math.MaxInt64:
		return math.MaxInt64
	}
	return int64(k.off)
}

// leaf collects the extents in the leaf at an address.
func (w *btrfsMap) leaf(at uint64, b []byte) error {
	for item, err := range btrfsItems(b, btrfsExtentKey) {
		if err != nil {
			return err
		}
		if item.key.ino != w.ino {
			continue
		}
		m, plain, err := parseBtrfsExtent(item.key.off, w.block, item.data)
		if err == nil {
			err = w.add(m)
		}
		if err != nil {
			return err
		}
		if plain && m.Off == 0 && item.data[20] == btrfsInline {
			w.inline, w.inlineAt = item.data[btrfsExtentHeader:], at+uint64(item.at)+btrfsExtentHeader
		}
	}
	return nil
}

// add adds a stretch of the file.
func (w *btrfsMap) add(m Mapped) error {
	if n := len(w.out); n > 0 && m.Off < w.out[n-1].End {
		return fmt.Errorf("%w: an extent at %d, behind one that ends at %d", errBtrfsBlock, m.Off, w.out[n-1].End)
	}
	if m.Len() > 0 {
		w.out = append(w.out, m)
	}
	return nil
}

// parseBtrfsExtent reads an item that says where the bytes of a file from off on are; block is the size of a block. A hole has no bytes. plain says that they are
// neither compressed nor encoded otherwise.
func parseBtrfsExtent(off, block uint64, b []byte) (m Mapped, plain bool, err error) {
	if len(b) < btrfsExtentHeader {
		return m, false, fmt.Errorf("%w: an extent of %d bytes", errBtrfsBlock, len(b))
	}
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	kind, length := b[20], u64(8) // ram_bytes
	plain = b[16] == 0 && b[17] == 0 && b[18] == 0 && b[19] == 0
	if kind != btrfsInline {
		if len(b) != btrfsExtentSize {
			return m, false, fmt.Errorf("%w: an extent of %d bytes", errBtrfsBlock, len(b))
		}
		length = u64(45)
	}
	if block == 0 || block > MaxBlock {
		block = MaxBlock
	}
	if off > math.MaxInt64-block || length > math.MaxInt64-off || length == 0 {
		return m, false, fmt.Errorf("%w: an extent of %d bytes at %d", errBtrfsBlock, length, off)
	}
	m = Mapped{Span: addr.Span{Off: int64(off), End: int64(off + length)}, Disk: Delayed}
	switch {
	case kind == btrfsInline: // its block has no other content
		m.End = max(m.End, m.Off+int64(block))
		plain = plain && uint64(len(b)-btrfsExtentHeader) == length
	case kind != btrfsRegular && kind != btrfsPrealloc:
		return Mapped{}, false, fmt.Errorf("%w: an extent of type %d", errBtrfsBlock, kind)
	case u64(21) == 0:
		m.End = m.Off
	case !plain:
	case u64(21) > math.MaxInt64/2 || u64(37) > math.MaxInt64/2:
		return Mapped{}, false, fmt.Errorf("%w: an extent at %d, from %d on", errBtrfsBlock, u64(21), u64(37))
	default:
		m.Disk, m.Unwritten = int64(u64(21)+u64(37)), kind == btrfsPrealloc
	}
	return m, plain, nil
}
