package script

import (
	"fmt"
	"math/rand/v2"
	"slices"
)

// Features are what a file system can do.
type Features struct {
	Extents   bool // fallocate(2) allocates
	ZeroRange bool // and zeroes
	// Inline says that data may be kept in the inode. Then such a file gets blocks only by a write: where ext4 moves its data by
	// ext4_convert_inline_data, for fallocate, for a store through a mapping and, since a mend that 6.12.95 has, for a truncate that extends
	// it, the block goes to the log, and the page cache goes past it. The kernel itself then reads zeros from the block until its
	// checkpoint (seen on 6.12 and 7.2 without a crash: what is before a write or a hole is lost), and a replay of the log brings older data
	// over newer, although that was fsynced (seen on 7.2).
	Inline bool
	// Seconds says that inodes have room for whole seconds only, up to 2038.
	Seconds bool
	// LargeXattrs says that attributes may be larger than a block.
	LargeXattrs bool
}

// Script is one thread's program and the tree that it makes.
type Script struct {
	Top *Node // the directory that the thread works in

	seed     uint64
	thread   int
	features Features
	keep     bool // keep what files hold
	rng      *rand.Rand
	weights  []int
	dataSize int64 // the approximate size of writes, in bytes

	number int // of the next operation
	nodes  int
	names  int
	queue  []Op // the steps that are left of an operation of several steps
	base   int  // operations before the barrier

	files, dirs, links []*Node // those with a name, dirs without Top
	slots              [Slots]*Node
	reuse              []string // names that were removed, and may be used again
}

// Limits of a thread's tree.
const (
	maxFiles = 250
	maxDirs  = 50
	maxLinks = 40
	maxSize  = 4 << 20 // bytes of a file, holes included
	xattrs   = 3       // user attributes of a file: more might not fit into a block of 1 KiB
)

// New returns the script of a thread. Only with keep does its tree know what
// the files hold.
func New(seed uint64, thread int, features Features, keep bool) *Script {
	s := &Script{
		seed: seed, thread: thread, features: features, keep: keep,
		rng: rand.New(rand.NewPCG(mix(seed), uint64(thread))),
	}
	s.Top = s.newNode(TypeDir | 0o755)
	s.dataSize = 1 << (9 + s.rng.IntN(6))
	s.base = 60 + s.rng.IntN(100)
	for _, m := range makers {
		// Each seed has its favourites.
		s.weights = append(s.weights, m.weight*(1+s.rng.IntN(5)))
	}
	return s
}

// Next returns the operation to do next. It returns the same one until Apply.
func (s *Script) Next() Op {
	var op Op
	switch {
	case len(s.queue) > 0:
		op = s.queue[0]
	case s.number < s.base:
		op = s.populate()
	case s.number == s.base:
		op = Op{Kind: Barrier, On: Ref{Slot: NoSlot}}
	default:
		op = s.random()
	}
	s.queue = append([]Op{op}, s.queue[min(1, len(s.queue)):]...)
	op.Number = s.number
	if op.Kind != Open && op.Kind != Close {
		op.Slot = NoSlot
	}
	op.Touch = s.touched(op)
	return op
}

// retire removes an operation that was applied from the queue.
func (s *Script) retire(Op) { s.queue = s.queue[1:] }

// Base returns how many operations come before the barrier.
func (s *Script) Base() int { return s.base }

// populate picks an operation that fills the tree before the barrier.
func (s *Script) populate() Op {
	for {
		pick := s.rng.IntN(10)
		var op Op
		ok := false
		switch {
		case pick < 4:
			op, ok = s.create()
		case pick < 5:
			op, ok = s.mkdir()
		case pick < 9:
			op, ok = s.write()
		default:
			op, ok = s.setXattr()
		}
		if ok {
			return op
		}
	}
}

// random picks an operation that can be done now.
func (s *Script) random() Op {
	sum := 0
	for _, w := range s.weights {
		sum += w
	}
	for {
		pick := s.rng.IntN(sum)
		for i, w := range s.weights {
			if pick -= w; pick < 0 {
				if op, ok := makers[i].make(s); ok {
					return op
				}
				break
			}
		}
	}
}

// touched returns the files whose times an operation may change, by their names after the
// operation.
func (s *Script) touched(op Op) []Ref {
	parent := func(at string) Ref {
		dir, _, err := s.place(at)
		if err != nil {
			panic(fmt.Sprintf("script: %v: %v", op, err)) // a script makes only operations that can be done
		}
		return Ref{dir.Path(), NoSlot}
	}
	switch op.Kind {
	case Barrier, Open, Close:
		return nil
	case Create, Mkdir, Symlink:
		return []Ref{op.On, parent(op.On.Path)}
	case Unlink, Rmdir:
		return []Ref{parent(op.On.Path)}
	case Link:
		return []Ref{{op.To, NoSlot}, parent(op.To)}
	case Rename:
		refs := []Ref{{op.To, NoSlot}, parent(op.To)}
		if from := parent(op.On.Path); !slices.Contains(refs, from) {
			refs = append(refs, from)
		}
		return refs
	}
	return []Ref{op.On}
}
