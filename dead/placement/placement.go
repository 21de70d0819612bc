// Package placement gives the unsaved data of files of ext2, ext3 and ext4 its place on
// the disk, as the dead kernel would have when it wrote it back: blocks that are free
// with and without the last transaction, and the metadata that says whose they are, to be
// added to that transaction.
//
// It is pure: it reads a disk, and returns what is to be written.
//
// # Caveats
//
// What is not understood is refused, by file (ErrFile), or as a whole. What is returned
// should be audited (package audit) before it is written: the two share how structures
// are laid out (package ext4), and not what they conclude from them.
package placement

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// File is what memory has of a regular file, and its disk not.
type File struct {
	Ino        addr.Ino
	Generation uint32
	Size       int64 // in bytes, as it is to be
	Atime      time.Time
	Mtime      time.Time
	Ctime      time.Time
	// Unsaved are the bytes that are to be written, ascending, the last at most to the end
	// of the block that has the file's end.
	Unsaved []Stretch
}

// Stretch are whole blocks of a file.
type Stretch struct {
	addr.Span
	// Disk is where memory has their first byte, on the disk, if it has them Mapped: where
	// the disk has them elsewhere, or nowhere, the file is refused.
	Disk   int64
	Mapped bool
	// Kept are blocks that are to be written only where they have a place: Zero if they read
	// as zeros without one. Others refuse the file if they have none.
	Kept, Zero bool
}

// Piece is where some bytes of a file go.
type Piece struct {
	addr.Span
	Disk int64 // of its first byte, on the disk
	// Was says that the bytes were mapped there before, and written.
	Was bool
	// Free says that the blocks were free before, with and without the last transaction, as
	// were the clusters that they are in: what is written there changes nothing for anybody
	// until the metadata is.
	Free bool
}

// Placed is a file that has got all of its places.
type Placed struct {
	File   *File
	Pieces []Piece // ascending: all of File.Unsaved, but for what is Kept without a place
	// Same says that nothing changes but data: it was placed so before.
	Same bool
}

// Result is what came of a placement.
type Result struct {
	// Blocks are those of the metadata that change, as they are to be: each of the size of
	// a block, with its checksums.
	Blocks map[addr.Block][]byte
	Placed []Placed
	// Refused says why a file has no place.
	Refused map[addr.Ino]error
	// Allocated counts blocks: of files, and of the trees that map them.
	Allocated uint64
}

var (
	// ErrRefused is wrapped by errors that say what of a file system, or of a file, is not
	// understood. Its data is for a kernel to write.
	ErrRefused = errors.New("blocks cannot be allocated")
	// ErrNoSpace says that there are not enough free blocks.
	ErrNoSpace = errors.New("no space left")
	// errDamaged is wrapped where the file system contradicts itself.
	errDamaged = errors.New("the file system contradicts itself")
)

// refuse makes an error that wraps ErrRefused.
func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrRefused, fmt.Errorf(format, args...))
}

// Place gives files their places. old is the disk as a recovery leaves it without the last
// transaction, changed are the blocks of that. Neither is changed. None of changed
// and of avoid is allocated. An error means that nothing has a place.
func Place(old io.ReaderAt, changed map[addr.Block][]byte, files []File, avoid []addr.Block) (*Result, error) {
	v, err := openVolume(old, changed)
	if err != nil {
		return nil, fmt.Errorf("place files: %w", err)
	}
	v.avoid = slices.Sorted(maps.Keys(changed))
	v.avoid = slices.Compact(slices.Sorted(slices.Values(append(v.avoid, avoid...))))
	r := &Result{Refused: make(map[addr.Ino]error), Placed: make([]Placed, 0, len(files))}
	for n := range files {
		f := &files[n]
		placed, err := v.place(f)
		switch {
		case errors.Is(err, ErrRefused):
			r.Refused[f.Ino] = err
		case err != nil:
			return nil, fmt.Errorf("place inode %d: %w", f.Ino, err)
		default:
			r.Placed = append(r.Placed, placed)
		}
	}
	if err := v.finish(); err != nil {
		return nil, fmt.Errorf("place files: %w", err)
	}
	r.Blocks, r.Allocated = v.out, v.allocated
	return r, nil
}

// mapping is how a file says where its blocks are: by extents, for which t is taken, or by pointers.
func (v *volume) mapping(t *tree, i *ext4.Inode) (mapping, error) {
	if i.Flags&ext4.InodeExtents != 0 {
		return t, v.openTree(t, i)
	}
	return v.openPointers(i), nil
}

// place gives one file its places. It is refused before anything is changed for it.
func (v *volume) place(f *File) (Placed, error) {
	p := Placed{File: f}
	i, err := v.inode(f)
	if err != nil {
		return p, err
	}
	m, err := v.mapping(&v.file.tree, i)
	if err != nil {
		return p, err
	}
	plan, err := v.divide(f, m)
	if err != nil {
		return p, err
	}
	raw, err := v.updated(f, i)
	if err != nil {
		return p, err
	}
	if p.Pieces, err = v.carryOut(i, m, plan, raw); errors.Is(err, ErrRefused) {
		err = errors.New(err.Error()) // it is too late to leave out this one only
	}
	p.Same = bytes.Equal(v.file.was, raw) && !slices.ContainsFunc(p.Pieces, func(p Piece) bool { return !p.Was })
	return p, err
}

// carryOut makes the changes for one file, whose inode is to be raw but for what maps it.
func (v *volume) carryOut(i *ext4.Inode, m mapping, plan []part, raw []byte) ([]Piece, error) {
	before := v.allocated
	pieces, err := v.fill(i, m, plan)
	if err != nil {
		return nil, err
	}
	if err := m.store(raw[0x28:][:len(i.Block)]); err != nil {
		return nil, err
	}
	if err := v.count(raw, i, v.allocated-before); err != nil {
		return nil, err
	}
	return pieces, v.putInode(i.Number, raw)
}

// mapping is how a file is mapped: by a tree of extents, or by pointers.
type mapping interface {
	// at returns what is mapped from a block on, and the end of that: of a hole, if
	// Physical is 0.
	at(logical uint32) (r ext4.Run, end uint64, err error)
	// before returns where the block before one is, if that is mapped, or one some way
	// before it; Length is 0 if there is none.
	before(logical uint32) ext4.Run
	// set maps a run, which is a hole or unwritten in all of it.
	set(ext4.Run) error
	// store writes what changed, and the part of it that is in the inode to root.
	store(root []byte) error
	// limit is how many blocks can be mapped.
	limit() uint64
}

// part is a stretch of a file that is unsaved and mapped in one way.
type part struct {
	ext4.Run // Physical is 0 if it is a hole
}

// divide says of all that is unsaved how it is mapped so far. That is good until the next file.
func (v *volume) divide(f *File, m mapping) ([]part, error) {
	size := int64(v.super.BlockSize)
	out := v.file.parts[:0]
	end := int64(0)
	for _, s := range f.Unsaved {
		if s.Off < end || s.Len() <= 0 || (s.Off|s.End)&(size-1) != 0 || s.End-size >= f.Size {
			return nil, refuse("its unsaved bytes [%d, %d) are out of order, not whole blocks, or beyond its size of %d bytes", s.Off, s.End, f.Size)
		}
		if end = s.End; uint64(end/size) > m.limit() {
			return nil, refuse("it cannot map block %d", end/size-1)
		}
		for at := s.Off / size; at < s.End/size; {
			r, next, err := m.at(uint32(at))
			if err != nil {
				return nil, err
			}
			n := min(next-uint64(at), uint64(s.End/size-at))
			if s.Mapped && (r.Physical == 0 || int64(r.Physical)*size != s.Disk+at*size-s.Off) {
				return nil, refuse("its block %d is at block %d, and memory has it at byte %d", at, r.Physical, s.Disk+at*size-s.Off)
			}
			p := part{ext4.Run{Logical: uint32(at), Physical: r.Physical, Length: uint32(n), Unwritten: r.Unwritten}}
			at += int64(n)
			if s.Kept && (p.Physical == 0 || p.Unwritten) {
				if !s.Zero {
					return nil, refuse("its block %d is clean and has data in memory, but is a hole or unwritten on the disk", p.Logical)
				}
				continue
			}
			out = append(out, p)
		}
	}
	if uint64(f.Size) > m.limit()*uint64(size) {
		return nil, refuse("it has %d bytes, more than it can map", f.Size)
	}
	v.file.parts = out
	return merged(out), nil
}

// merged joins holes that follow each other: they are allocated in one piece.
func merged(parts []part) []part {
	out := parts[:0]
	for _, p := range parts {
		if n := len(out); n > 0 && p.Physical == 0 && out[n-1].Physical == 0 && out[n-1].Logical+out[n-1].Length == p.Logical {
			out[n-1].Length += p.Length
			continue
		}
		out = append(out, p)
	}
	return out
}

// fill allocates what is a hole, and has unwritten extents be written.
func (v *volume) fill(i *ext4.Inode, m mapping, plan []part) ([]Piece, error) {
	size := int64(v.super.BlockSize)
	out := make([]Piece, 0, len(plan))
	for _, p := range plan {
		switch {
		case p.Physical == 0:
			var err error
			if out, err = v.allocateAll(out, i, m, p.Run); err != nil {
				return nil, err
			}
		case p.Unwritten:
			r := p.Run
			r.Unwritten = false
			if err := m.set(r); err != nil {
				return nil, err
			}
			out = append(out, piece(r, size, false))
		default:
			out = append(out, piece(p.Run, size, true))
		}
	}
	return out, nil
}

func piece(r ext4.Run, size int64, was bool) Piece {
	p := Piece{Disk: int64(r.Physical) * size, Was: was}
	p.Off = int64(r.Logical) * size
	p.End = p.Off + int64(r.Length)*size
	return p
}

// given is a place for a part of a hole. free says that it is in clusters that were free.
type given struct {
	ext4.Run
	free bool
}

// allocateAll allocates and maps a hole, and adds its places to a list.
func (v *volume) allocateAll(out []Piece, i *ext4.Inode, m mapping, hole ext4.Run) ([]Piece, error) {
	for hole.Length > 0 {
		r, err := v.allocateOne(i, m, hole)
		if err != nil {
			return nil, err
		}
		if err := m.set(r.Run); err != nil {
			return nil, err
		}
		p := piece(r.Run, int64(v.super.BlockSize), false)
		p.Free = r.free
		out = append(out, p)
		hole.Logical, hole.Length = hole.Logical+r.Length, hole.Length-r.Length
	}
	return out, nil
}

// allocateOne finds a place for the beginning of a hole: in the cluster that the file has
// for other blocks there already, or in new ones.
func (v *volume) allocateOne(i *ext4.Inode, m mapping, hole ext4.Run) (given, error) {
	r := given{Run: ext4.Run{Logical: hole.Logical}}
	within := hole.Logical % v.cluster
	at, found, err := v.clusterAt(m, hole.Logical/v.cluster)
	if err != nil {
		return r, err
	}
	if found {
		r.Physical, r.Length = at+addr.Block(within), min(hole.Length, v.cluster-within)
		return r, nil
	}
	// The last one may be there, too.
	want := (within + hole.Length + v.cluster - 1) / v.cluster
	if _, found, err = v.clusterAt(m, hole.Logical/v.cluster+want-1); err != nil {
		return r, err
	} else if found {
		want--
	}
	first, n, err := v.allocate(v.goal(i, m.before(hole.Logical), hole.Logical), want)
	r.Physical, r.Length, r.free = first+addr.Block(within), min(hole.Length, n*v.cluster-within), true
	return r, err
}

// clusterAt returns where a cluster of a file is, if one of its blocks is mapped
// (fs/ext4/extents.c, get_implied_cluster_alloc).
func (v *volume) clusterAt(m mapping, n uint32) (addr.Block, bool, error) {
	if v.cluster == 1 {
		return 0, false, nil // a hole is none
	}
	for at, end := uint64(n)*uint64(v.cluster), (uint64(n)+1)*uint64(v.cluster); at < end; {
		r, next, err := m.at(uint32(at))
		if err != nil {
			return 0, false, err
		}
		if r.Physical != 0 {
			first := r.Physical - addr.Block(at%uint64(v.cluster))
			if uint64(first)%uint64(v.cluster) != 0 {
				return 0, false, fmt.Errorf("%w: its block %d is mapped to block %d, which is at another offset in its cluster", errDamaged, at, r.Physical)
			}
			return first, true, nil
		}
		at = next
	}
	return 0, false, nil
}

// goal is where a block of a file would best be: as far behind one before it as it is in
// the file; or in the inode's group. With groups that lie together the first of them is for
// directories (fs/ext4/extents.c, ext4_ext_find_goal; inode.c, ext4_inode_to_goal_block).
func (v *volume) goal(i *ext4.Inode, before ext4.Run, logical uint32) addr.Block {
	if before.Length > 0 {
		goal := before.Physical + addr.Block(logical-before.Logical)
		if v.super.Contains(goal, 1) {
			return goal
		}
		return before.Physical
	}
	group := uint64(i.Number-1) / uint64(v.super.InodesPerGroup)
	const schemed = 4 // EXT4_FLEX_SIZE_DIR_ALLOC_SCHEME
	if v.super.FlexSize >= schemed {
		group = group&^(v.super.FlexSize-1) + 1
		group = min(group, v.super.Groups()-1)
	}
	start, _ := v.bounds(uint32(group))
	return start
}
