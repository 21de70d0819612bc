package pagecache

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"understudy.dev/understudy/dead/addr"
)

// own reads the xfs_inode around an inode.
func (x *XFS) own(i *Inode) ([]byte, error) {
	l := x.layout
	b, err := x.c.k.Bytes(i.Addr-addr.Virt(l.inode.Off), l.inodeSize)
	if err != nil {
		return nil, fmt.Errorf("read xfs inode %d: %w", i.Ino, err)
	}
	if mount := l.inodeMount.Pointer(b); mount != x.s.info {
		return nil, fmt.Errorf("read xfs inode %d: it belongs to the mount at %v", i.Ino, mount)
	}
	return b, nil
}

// Committed reports whether a log recovery brings everything that memory has of an inode
// to the disk, except its unsaved data: no change waits for the log, which would pin the inode
// (fs/xfs/xfs_inode_item.c, xfs_inode_item_pin), and no transaction is changing it.
func (x *XFS) Committed(i *Inode) (bool, error) {
	b, err := x.own(i)
	if err != nil {
		return false, err
	}
	l := x.layout
	if l.pins.Uint(b) != 0 || !l.lock.Free(b) {
		return false, nil
	}
	item, err := x.logItem(i, b)
	return err == nil && (item == nil || l.itemDirty.Uint(item) == 0), err
}

// logItem reads the log item of an inode; nil if the inode was never changed.
func (x *XFS) logItem(i *Inode, own []byte) ([]byte, error) {
	l := x.layout
	at := l.item.Pointer(own)
	if at == 0 {
		return nil, nil
	}
	item, err := x.c.k.Bytes(at, l.itemSize)
	if err != nil {
		return nil, fmt.Errorf("read xfs inode %d: log item: %w", i.Ino, err)
	}
	if owner := l.itemInode.Pointer(item); owner != i.Addr-addr.Virt(l.inode.Off) {
		return nil, fmt.Errorf("read xfs inode %d: its log item belongs to inode at %v", i.Ino, owner)
	}
	return item, nil
}

// xfsTimes are the flags of changes of times alone (fs/xfs/libxfs/xfs_log_format.h, XFS_ILOG_TIMESTAMP, XFS_ILOG_IVERSION).
const xfsTimes = 0x4000 | 0x8000

// xfsNotExtents are the flags of changes that do not affect where a file lies: of the core, with size,
// owner and times, and of the attribute fork (fs/xfs/libxfs/xfs_log_format.h, XFS_ILOG_CORE, ADATA, AEXT,
// ABROOT, TIMESTAMP, IVERSION).
const xfsNotExtents = 0x001 | 0x040 | 0x080 | 0x100 | xfsTimes

// Kept reports whether a log recovery brings all extents of a file that memory has to the disk: none was
// changed since the inode was written to its place, which happens after the log (fs/xfs/xfs_inode.c,
// xfs_iflush). It is false for extents that are not in the inode itself, because then a block of their
// tree may be all that was changed, and for a file without extents, which may not be on the disk at all.
func (x *XFS) Kept(i *Inode) (bool, error) {
	b, err := x.own(i)
	if err != nil {
		return false, err
	}
	l := x.layout
	item, err := x.logItem(i, b)
	if err != nil || item == nil || l.itemFields.Uint(item)&^xfsNotExtents != 0 || l.fork.read(l.data.Bytes(b)).format != xfsFormatExtents {
		return false, err
	}
	mapped, err := x.Mapping(i)
	return slices.ContainsFunc(mapped, func(m Mapped) bool { return m.Disk != Delayed }), err
}

// The tree of a file's extents in memory (fs/xfs/libxfs/xfs_iext_tree.c): nodes of
// 256 bytes, with 16 pointers behind 16 keys; leaves of the same size with 15
// records of 16 bytes and the pointers to their neighbours. A single leaf is only
// as large as its records.
const (
	iextNode      = 256
	iextKeys      = 16
	iextRecords   = 15
	iextRecord    = 16
	maxIextHeight = 8
)

// Extent formats of a fork (fs/xfs/libxfs/xfs_format.h, enum xfs_dinode_fmt).
const (
	xfsFormatExtents = 2
	xfsFormatTree    = 3
)

// Delayed is the Disk of a delayed allocation: its data is in memory
// alone.
const Delayed = -1

// Mapping returns where a regular file lies on its device, ascending, as the dead
// kernel knew it. What is not mapped is zeros. A stretch whose blocks are still to
// be allocated has Delayed for its Disk.
func (x *XFS) Mapping(i *Inode) ([]Mapped, error) {
	b, err := x.own(i)
	if err != nil {
		return nil, err
	}
	var out []Mapped
	if !x.layout.lock.Free(b) {
		err = errors.New("its extent tree was mid-update when the kernel died")
	} else {
		out, err = x.extents(x.layout.fork.read(x.layout.data.Bytes(b)))
	}
	if err != nil {
		return nil, fmt.Errorf("map inode %d: %w: %w", i.Ino, ErrMapping, err)
	}
	return out, nil
}

// extents returns where a fork of an inode lies on its device, ascending.
func (x *XFS) extents(f xfsFork) ([]Mapped, error) {
	switch {
	case f.format != xfsFormatExtents && f.format != xfsFormatTree:
		return nil, fmt.Errorf("its format is %d", f.format)
	case f.height == 0 && (f.extents > 0 || f.format == xfsFormatTree):
		return nil, errors.New("its extents were not read")
	case f.height > maxIextHeight:
		return nil, fmt.Errorf("its tree is %d high", f.height)
	case f.height == 0:
		return nil, nil
	}
	w := &iextWalk{x: x, left: maxExtents, records: iextRecords}
	if f.height == 1 {
		w.records = min(iextRecords, f.bytes/iextRecord)
	}
	if err := w.node(f.at, f.height); err != nil {
		return nil, err
	}
	real := uint64(0)
	for _, m := range w.out {
		if m.Disk != Delayed {
			real++
		}
	}
	if real != f.extents {
		return nil, fmt.Errorf("its tree has %d extents of %d", real, f.extents)
	}
	return w.out, nil
}

// iextWalk collects the records of one tree.
type iextWalk struct {
	x       *XFS
	left    int    // records and nodes that may still come
	records uint64 // in a leaf, at most
	end     int64
	out     []Mapped
}

// node visits a node of the given height; that of a leaf is 1.
func (w *iextWalk) node(at addr.Virt, height uint64) error {
	if w.left--; w.left < 0 {
		return errors.New("its extent tree is too large, or circular")
	}
	if height == 1 {
		return w.leaf(at)
	}
	b, err := w.x.c.k.Bytes(at, iextNode)
	if err != nil {
		return err
	}
	for n := range iextKeys {
		// The first unused pointer has the key XFS_IEXT_KEY_INVALID.
		if binary.LittleEndian.Uint64(b[8*n:])>>63 == 1 {
			break
		}
		child := addr.Virt(binary.LittleEndian.Uint64(b[8*(iextKeys+n):]))
		if err := w.node(child, height-1); err != nil {
			return err
		}
	}
	return nil
}

func (w *iextWalk) leaf(at addr.Virt) error {
	b, err := w.x.c.k.Bytes(at, int(w.records*iextRecord))
	if err != nil {
		return err
	}
	for ; len(b) > 0; b = b[iextRecord:] {
		lo, hi := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
		if hi == 0 {
			return nil
		}
		if err := w.record(lo, hi); err != nil {
			return err
		}
	}
	return nil
}

// record adds one extent: 54 bits of offset, 52 of the block on the disk, 21 of
// length, and one that says that it is unwritten.
func (w *iextWalk) record(lo, hi uint64) error {
	if w.left--; w.left < 0 {
		return errors.New("its extent tree is too large, or circular")
	}
	first, count := lo&(1<<54-1), hi&(1<<21-1)
	block := lo>>54 | hi>>22<<10
	shift := w.x.blockLog
	if count == 0 || first > 1<<(62-shift) {
		return fmt.Errorf("an extent of %d blocks at %d", count, first)
	}
	m := Mapped{Span: addr.Span{Off: int64(first << shift), End: int64((first + count) << shift)}, Unwritten: hi>>21&1 == 1}
	if m.Off < w.end {
		return fmt.Errorf("the extent at byte %d overlaps the one before, which ends at byte %d", m.Off, w.end)
	}
	w.end = m.End
	// Instead of a block, a delayed allocation has a mask and the number of blocks
	// that the tree may need (libxfs/xfs_format.h, isnullstartblock).
	const delayed = (1<<35 - 1) << 17
	group, within := block>>w.x.agShift, block&(1<<w.x.agShift-1)
	switch {
	case block&delayed == delayed:
		m.Disk = Delayed
	case within >= w.x.agBlocks || group > 1<<32 || within+count > w.x.agBlocks || (group+1)*w.x.agBlocks > 1<<(62-shift):
		return fmt.Errorf("an extent at block %d of group %d", within, group)
	default:
		m.Disk = int64((group*w.x.agBlocks + within) << shift)
	}
	w.out = append(w.out, m)
	return nil
}

// xfsFormatLocal is the format of a fork whose content lies in the inode itself
// (fs/xfs/libxfs/xfs_format.h, XFS_DINODE_FMT_LOCAL).
const xfsFormatLocal = 1

// Link returns the target of a symbolic link that lies in the inode itself, as all do that
// fit. The kernel has no i_link for them since 5.17 (commit 7b7820b83f23), since the fork's
// own bytes do not end in a zero.
func (x *XFS) Link(i *Inode) (string, error) {
	b, err := x.own(i)
	if err != nil {
		return "", err
	}
	f := x.layout.fork.read(x.layout.data.Bytes(b))
	size := int64(f.bytes)
	switch {
	case f.format != xfsFormatLocal:
		return "", fmt.Errorf("read link of inode %d: it is not in the inode: format %d", i.Ino, f.format)
	case size < 1 || size > maxLink || i.Size < 1 || i.Size > size:
		return "", fmt.Errorf("read link of inode %d: its size is %d bytes, but if_bytes is %d", i.Ino, i.Size, size)
	}
	target, err := x.c.k.Bytes(f.at, int(i.Size))
	if err != nil {
		return "", fmt.Errorf("read link of inode %d: %w", i.Ino, err)
	}
	if bytes.IndexByte(target, 0) >= 0 {
		return "", fmt.Errorf("read link of inode %d: a zero within its %d bytes", i.Ino, i.Size)
	}
	return string(target), nil
}
