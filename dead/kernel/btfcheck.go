package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Bounds of BTF. Debian's kernels have 110,000 to 200,000 types, and nest them
// less than 30 deep.
const (
	maxTypes     = 1 << 20
	maxTypeDepth = 256
)

// Kinds of BTF types (include/uapi/linux/btf.h, BTF_KIND_*).
const (
	kindInt       = 1
	kindPointer   = 2
	kindArray     = 3
	kindStruct    = 4
	kindUnion     = 5
	kindEnum      = 6
	kindTypedef   = 8
	kindVolatile  = 9
	kindConst     = 10
	kindRestrict  = 11
	kindFunc      = 12
	kindFuncProto = 13
	kindVar       = 14
	kindDatasec   = 15
	kindDeclTag   = 17
	kindTypeTag   = 18
	kindEnum64    = 19
)

// rawBTF is BTF that has been copied out of memory, to be made harmless before
// it is decoded: the decoder follows every reference by recursion, and a chain
// of a million references would exhaust its stack, which ends the process.
type rawBTF struct {
	data    []byte
	first   uint32   // the number of the first type: 1, or more for split BTF
	offsets []uint32 // of type first+i in data
	height  []uint16 // levels of nesting of each type; 0 is not known yet
}

// tameBTF returns a copy of BTF in which pointers point to nothing: their targets
// are of no interest, and without them types nest only a few levels deep,
// which is checked. first is the number of the first type.
func tameBTF(raw []byte, first uint32) (*rawBTF, error) {
	if len(raw) < 24 || len(raw) > maxBTF || binary.LittleEndian.Uint16(raw) != 0xeb9f {
		return nil, fmt.Errorf("parse BTF: %d bytes without its magic", len(raw))
	}
	b := &rawBTF{data: append([]byte(nil), raw...), first: first}
	if err := b.index(); err != nil {
		return nil, err
	}
	b.height = make([]uint16, len(b.offsets))
	for i := range b.offsets {
		if _, err := b.depth(first+uint32(i), 0); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (b *rawBTF) u32(at uint64) uint32 { return binary.LittleEndian.Uint32(b.data[at:]) }

// index finds where each type begins, and clears the targets of pointers.
func (b *rawBTF) index() error {
	// struct btf_header: magic, version, flags, then five numbers.
	head := uint64(b.u32(4))
	start := head + uint64(b.u32(8))
	end := start + uint64(b.u32(12))
	if end > uint64(len(b.data)) {
		return errors.New("parse BTF: its types lie outside of it")
	}
	for at := start; at < end; {
		if at+12 > end || len(b.offsets) == maxTypes {
			return fmt.Errorf("parse BTF: type %d is cut off, or one too many", len(b.offsets))
		}
		b.offsets = append(b.offsets, uint32(at))
		kind, n := b.kind(at)
		if kind == kindPointer {
			binary.LittleEndian.PutUint32(b.data[at+8:], 0)
		}
		if at += 12 + tailSize(kind, n); at > end {
			return fmt.Errorf("parse BTF: type %d is cut off", len(b.offsets))
		}
	}
	return nil
}

// kind returns the kind and the number of members of the type at an offset.
func (b *rawBTF) kind(at uint64) (kind, n uint32) {
	info := b.u32(at + 4)
	return info >> 24 & 0x1f, info & 0xffff
}

// tailSize is how many bytes follow the btf_type of a kind with n members.
func tailSize(kind, n uint32) uint64 {
	switch kind {
	case kindInt, kindVar, kindDeclTag:
		return 4
	case kindArray:
		return 12
	case kindStruct, kindUnion, kindDatasec, kindEnum64:
		return 12 * uint64(n)
	case kindEnum, kindFuncProto:
		return 8 * uint64(n)
	}
	return 0
}

// depth returns how deep types are nested below a type. A type that contains itself
// is reported as nested too deep.
func (b *rawBTF) depth(id uint32, level int) (int, error) {
	if id < b.first || uint64(id-b.first) >= uint64(len(b.offsets)) {
		return 0, nil // void, a type of the base, or one that the decoder refuses
	}
	if level > maxTypeDepth {
		return 0, fmt.Errorf("parse BTF: type %d nests more than %d levels", id, maxTypeDepth)
	}
	if h := b.height[id-b.first]; h != 0 {
		return int(h), nil
	}
	deepest := 0
	var failed error
	b.references(uint64(b.offsets[id-b.first]), func(next uint32) bool {
		h, err := b.depth(next, level+1)
		deepest, failed = max(deepest, h), err
		return err == nil
	})
	if failed == nil && deepest >= maxTypeDepth {
		failed = fmt.Errorf("parse BTF: type %d nests more than %d levels", id, maxTypeDepth)
	}
	if failed != nil {
		return 0, failed
	}
	b.height[id-b.first] = uint16(deepest + 1)
	return deepest + 1, nil
}

// references visits the types that the type at an offset refers to.
func (b *rawBTF) references(at uint64, visit func(uint32) bool) {
	kind, n := b.kind(at)
	tail := at + 12
	switch kind {
	case kindTypedef, kindVolatile, kindConst, kindRestrict, kindFunc, kindVar, kindTypeTag:
		visit(b.u32(at + 8))
	case kindArray:
		_ = visit(b.u32(tail)) && visit(b.u32(tail+4))
	case kindStruct, kindUnion:
		for i := range uint64(n) {
			if !visit(b.u32(tail + 12*i + 4)) {
				return
			}
		}
	case kindFuncProto:
		if !visit(b.u32(at + 8)) {
			return
		}
		for i := range uint64(n) {
			if !visit(b.u32(tail + 8*i + 4)) {
				return
			}
		}
	case kindDatasec:
		for i := range uint64(n) {
			if !visit(b.u32(tail + 12*i)) {
				return
			}
		}
	}
	// Declaration tags refer back to what they describe, which the decoder does not
	// follow from there.
}
