// Package placement gives unsaved file data of ext2, ext3 and ext4 a place on the disk, as
// writeback in the dead kernel would have done. It allocates blocks that are free both with
// and without the last transaction, and makes the metadata that says which file they belong
// to. That metadata is to be added to the transaction.
//
// The package is pure: it reads a disk, and returns what is to be written.
//
// # Caveats
//
// What the package does not understand it refuses, by file (Result.Refused), or as a whole.
// Its result should be audited (package audit) before it is written: the two packages share
// the layout of structures (package ext4), but not what they conclude from them.
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

// File is a regular file with data in memory that has not reached its disk.
type File struct {
	Ino        addr.Ino
	Generation uint32
	Size       int64 // in bytes, to be set
	Atime      time.Time
	Mtime      time.Time
	Ctime      time.Time
	// Unsaved are the ranges to be written, in ascending order. The last one must not reach
	// beyond the block in which the file ends.
	Unsaved []Stretch
}

// Stretch is a range of whole blocks of a file.
type Stretch struct {
	addr.Span
	// Disk is the offset of the first byte on the disk according to memory, if Mapped says that
	// memory maps the blocks. If the disk maps them elsewhere, or not at all, the file is refused.
	Disk   int64
	Mapped bool
	// Kept blocks are written only where the disk maps them, and not as unwritten. Elsewhere they
	// are left out if Zero says that they are all zeros, which is what the disk reads as there; if
	// Zero is not set, the file is refused.
	Kept, Zero bool
}

// Piece is a range of a file and the place on the disk that it goes to.
type Piece struct {
	addr.Span
	Disk int64 // of its first byte, on the disk
	// Was says that the bytes were mapped there before, by a written extent or a pointer.
	Was bool
	// Free says that the blocks and the clusters that they are in were free before, with and
	// without the last transaction: data written there changes nothing visible until the
	// metadata is written.
	Free bool
}

// Placed is a file whose unsaved data has all got a place.
type Placed struct {
	File   *File
	Pieces []Piece // ascending: all of File.Unsaved, but for Kept blocks that are left out
	// Same says that nothing changes but data: the file already had this placement.
	Same bool
}

// Result is the outcome of a placement.
type Result struct {
	// Blocks are the new contents of the metadata blocks that change: each of the size of a
	// block, with its checksums.
	Blocks map[addr.Block][]byte
	Placed []Placed
	// Refused says why a file was refused, by inode.
	Refused map[addr.Ino]error
	// Allocated counts the clusters allocated (blocks without bigalloc), for data and for the
	// trees that map it.
	Allocated uint64
}

var (
	// ErrRefused is wrapped by errors that say what is not understood about a file system or
	// a file. The data of such a file is left for a kernel to write.
	ErrRefused = errors.New("blocks cannot be allocated")
	// ErrNoSpace says that there are not enough free blocks.
	ErrNoSpace = errors.New("no space left")
	// errDamaged is wrapped where the file system contradicts itself.
	errDamaged = errors.New("the file system contradicts itself")
)

// refuse returns an error that wraps ErrRefused.
func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrRefused, fmt.Errorf(format, args...))
}

// Place gives files their places. old is the disk as a recovery without the last transaction
// leaves it; changed are the blocks of that transaction. Place modifies neither, and
// allocates no block of changed or avoid. An error means that no file has a place.
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

// mapping opens the mapping of an inode: an extent tree, which is read into t, or pointers.
func (v *volume) mapping(t *tree, i *ext4.Inode) (mapping, error) {
	if i.Flags&ext4.InodeExtents != 0 {
		return t, v.openTree(t, i)
	}
	return v.openPointers(i), nil
}

// place gives one file its places. If the file is refused, nothing has been changed for it yet.
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
		err = errors.New(err.Error()) // changes were made: it is too late to leave out this file only
	}
	p.Same = bytes.Equal(v.file.was, raw) && !slices.ContainsFunc(p.Pieces, func(p Piece) bool { return !p.Was })
	return p, err
}

// carryOut makes the changes for one file. raw is its new inode, but for i_block and i_blocks.
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

// mapping maps the blocks of a file: by an extent tree, or by pointers.
type mapping interface {
	// at returns the run that is mapped from a block on, and the block of the file behind
	// it. If r.Physical is 0, the block is in a hole, and end is where the hole ends.
	at(logical uint32) (r ext4.Run, end uint64, err error)
	// before returns a mapped run that precedes a block, at some distance or directly; Length
	// is 0 if there is none.
	before(logical uint32) ext4.Run
	// set maps a run. All of it must be a hole, or unwritten so far.
	set(ext4.Run) error
	// store writes what changed, and writes the part of the mapping in the inode to root.
	store(root []byte) error
	// limit returns how many blocks can be mapped.
	limit() uint64
}

// part is an unsaved range of a file that is mapped in one way: a hole, unwritten or written.
type part struct {
	ext4.Run // Physical is 0 if it is a hole
}

// divide splits the unsaved ranges of a file by how they are mapped so far. The result is valid until
// the next file.
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

// merged joins adjacent holes, so that they are allocated in one piece.
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

// fill allocates blocks for holes, and converts unwritten extents to written ones.
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

// given is a place for a part of a hole. free says that the clusters it is in were free.
type given struct {
	ext4.Run
	free bool
}

// allocateAll allocates and maps all of a hole, and appends its places to out.
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

// allocateOne finds a place for the beginning of a hole: in the cluster that the file already
// has for neighbouring blocks, or in new clusters.
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
	// The file may already have the last cluster, too.
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
		return 0, false, nil // a block in a hole has no cluster
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

// goal returns the best place for a block of a file: at the same distance from an earlier
// block as in the file, or else in the inode's group. In a flex group, the first group is left to
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
