package placement

import (
	"encoding/binary"
	"fmt"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// directBlocks is the number of pointers in an inode to blocks of the file (EXT4_NDIR_BLOCKS);
// three more point to blocks of pointers, one, two and three levels deep.
const directBlocks = 12

// pointers is the mapping of a file without extents (fs/ext4/indirect.c).
type pointers struct {
	v     *volume
	inode *ext4.Inode
	root  [directBlocks + 3]uint32
	goal  addr.Block
}

func (v *volume) openPointers(i *ext4.Inode) *pointers {
	p := &pointers{v: v, inode: i}
	for n := range p.root {
		p.root[n] = binary.LittleEndian.Uint32(i.Block[4*n:])
	}
	return p
}

// limit returns how many blocks pointers can map. Each pointer has 32 bits.
func (p *pointers) limit() uint64 {
	n := uint64(p.v.super.BlockSize / 4)
	return directBlocks + n + n*n + n*n*n
}

// path returns the way to the pointer for a block: the index of the pointer in the inode, and
// the indices in the blocks of pointers from there on.
func (p *pointers) path(logical uint64) (root int, way []uint64) {
	if logical < directBlocks {
		return int(logical), nil
	}
	logical -= directBlocks
	per := uint64(p.v.super.BlockSize / 4)
	level, span := 1, per
	for logical >= span {
		logical -= span
		level, span = level+1, span*per
	}
	way = make([]uint64, level)
	for n := level - 1; n >= 0; n-- {
		way[n] = logical % per
		logical /= per
	}
	return directBlocks + level - 1, way
}

// look returns the pointer for a block. If it is 0, hole is how many blocks from that one on
// are known not to be mapped.
func (p *pointers) look(logical uint64) (at addr.Block, hole uint64, err error) {
	root, way := p.path(logical)
	at = addr.Block(p.root[root])
	per := uint64(p.v.super.BlockSize / 4)
	for n, index := range way {
		if at == 0 {
			return 0, holeLength(way[n:], per), nil // nothing below it is mapped
		}
		b, err := p.node(at)
		if err != nil {
			return 0, 0, err
		}
		at = addr.Block(binary.LittleEndian.Uint32(b[4*index:]))
	}
	return at, 1, nil
}

// holeLength returns how many blocks a missing block of pointers would map, counted from the block
// that way leads to. way holds the indices in that block of pointers and in those below it.
func holeLength(way []uint64, per uint64) uint64 {
	all, before := uint64(1), uint64(0)
	for _, i := range way {
		all *= per
		before = before*per + i
	}
	return all - before
}

// node reads a block of pointers.
func (p *pointers) node(at addr.Block) ([]byte, error) {
	if !p.v.super.Contains(at, 1) || !p.v.free(at, 1) {
		return nil, fmt.Errorf("%w: an indirect block at block %d, which is outside of the file system or in its metadata", errDamaged, at)
	}
	return p.v.block(at)
}

func (p *pointers) at(logical uint32) (ext4.Run, uint64, error) {
	first, hole, err := p.look(uint64(logical))
	if err != nil {
		return ext4.Run{}, 0, err
	}
	end := uint64(logical) + hole
	if first != 0 {
		if !p.v.super.Contains(first, 1) || !p.v.free(first, 1) {
			return ext4.Run{}, 0, fmt.Errorf("%w: block %d is mapped to block %d, which is outside of the file system or in its metadata", errDamaged, logical, first)
		}
		return ext4.Run{Logical: logical, Physical: first, Length: 1}, end, nil
	}
	return ext4.Run{}, end, nil
}

func (p *pointers) before(logical uint32) ext4.Run {
	if logical == 0 {
		return ext4.Run{}
	}
	at, _, err := p.look(uint64(logical) - 1)
	if err != nil || at == 0 {
		return ext4.Run{}
	}
	return ext4.Run{Logical: logical - 1, Physical: at, Length: 1}
}

// set writes the pointers to a run, and allocates the blocks of pointers that are missing.
func (p *pointers) set(r ext4.Run) error {
	p.goal = r.Physical + addr.Block(r.Length)
	for ; r.Length > 0; r = skip(r) {
		if uint64(r.Physical) >= 1<<32 {
			return fmt.Errorf("%w: block %d, where pointers have 32 bits", ErrNoSpace, r.Physical)
		}
		root, way := p.path(uint64(r.Logical))
		if len(way) == 0 {
			p.root[root] = uint32(r.Physical)
			continue
		}
		at, err := p.below(p.root[root], func(n uint32) { p.root[root] = n })
		if err != nil {
			return err
		}
		for ; len(way) > 1; way = way[1:] {
			b, err := p.v.edit(at)
			if err != nil {
				return err
			}
			slot := b[4*way[0]:]
			if at, err = p.below(binary.LittleEndian.Uint32(slot), func(n uint32) { binary.LittleEndian.PutUint32(slot, n) }); err != nil {
				return err
			}
		}
		b, err := p.v.edit(at)
		if err != nil {
			return err
		}
		binary.LittleEndian.PutUint32(b[4*way[0]:], uint32(r.Physical))
	}
	return nil
}

// skip is Run.Skip(1), but works for the last block, too.
func skip(r ext4.Run) ext4.Run {
	r.Logical, r.Physical, r.Length = r.Logical+1, r.Physical+1, r.Length-1
	return r
}

// below returns the block of pointers that a pointer leads to. If the pointer is 0, it allocates
// a new block, and stores the pointer with put.
func (p *pointers) below(pointer uint32, put func(uint32)) (addr.Block, error) {
	if pointer != 0 {
		return addr.Block(pointer), nil
	}
	goal := p.goal
	if !p.v.super.Contains(goal, 1) {
		goal = p.v.goal(p.inode, ext4.Run{}, 0)
	}
	at, _, err := p.v.allocate(goal, 1)
	if err != nil {
		return 0, err
	}
	if uint64(at) >= 1<<32 {
		return 0, fmt.Errorf("%w: block %d, where pointers have 32 bits", ErrNoSpace, at)
	}
	p.v.out[at] = make([]byte, p.v.super.BlockSize)
	put(uint32(at))
	return at, nil
}

// store writes the pointers in the inode; set has written the blocks of pointers.
func (p *pointers) store(root []byte) error {
	for n, pointer := range p.root {
		binary.LittleEndian.PutUint32(root[4*n:], pointer)
	}
	return nil
}
