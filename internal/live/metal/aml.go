package metal

import (
	"encoding/binary"
	"slices"
	"strings"
)

// A little of ACPI's machine language (ACPI 6.5, chapter 20), and of its resource
// descriptors (6.4): as much as the understudy's DSDT needs.

// aml is a stretch of machine language.
type aml []byte

// packageLength encodes the length of a package of n bytes (20.2.4). The length includes
// the encoding itself. Any length that we write fits into one byte, or into three.
func packageLength(n int) aml {
	if n+1 < 0x40 {
		return aml{byte(n + 1)}
	}
	n += 3
	return aml{0x80 | byte(n&0xf), byte(n >> 4), byte(n >> 12)}
}

// packaged encodes an operator whose operands are preceded by their package length.
func packaged(op []byte, parts ...aml) aml {
	body := slices.Concat(parts...)
	return slices.Concat(op, packageLength(len(body)), body)
}

// segment is a name of up to four characters (20.2.2).
func segment(name string) aml { return aml((name + "____")[:4]) }

// rooted is a name of two segments from the root.
func rooted(a, b string) aml { return slices.Concat(aml{'\\', 0x2e}, segment(a), segment(b)) }

func amlByte(v byte) aml { return aml{0x0a, v} }

func amlWord(v uint16) aml { return binary.LittleEndian.AppendUint16(aml{0x0b}, v) }

func amlQword(v uint64) aml { return binary.LittleEndian.AppendUint64(aml{0x0e}, v) }

func amlString(s string) aml { return append(append(aml{0x0d}, s...), 0) }

func amlName(name string, value aml) aml { return slices.Concat(aml{0x08}, segment(name), value) }

func amlScope(path aml, parts ...aml) aml {
	return packaged([]byte{0x10}, append([]aml{path}, parts...)...)
}

func amlDevice(name string, parts ...aml) aml {
	return packaged([]byte{0x5b, 0x82}, append([]aml{segment(name)}, parts...)...)
}

// amlMethod is a method without arguments.
func amlMethod(name string, body ...aml) aml {
	return packaged([]byte{0x14}, append([]aml{segment(name), {0}}, body...)...)
}

func amlIfEqual(a, b aml, then ...aml) aml {
	return packaged([]byte{0xa0}, append([]aml{slices.Concat(aml{0x93}, a, b)}, then...)...)
}

func amlReturn(v aml) aml { return slices.Concat(aml{0xa4}, v) }

func amlNotify(object aml, value byte) aml { return slices.Concat(aml{0x86}, object, amlByte(value)) }

func amlBuffer(b []byte) aml { return packaged([]byte{0x11}, amlWord(uint16(len(b))), b) }

// amlMemoryField is a 32-bit field at a physical address, without a lock.
func amlMemoryField(region, field string, at uint64) aml {
	const systemMemory, dwordAccess = 0, 3
	return slices.Concat(
		slices.Concat(aml{0x5b, 0x80}, segment(region), aml{systemMemory}, amlQword(at), amlByte(4)),
		packaged([]byte{0x5b, 0x81}, segment(region), aml{dwordAccess}, segment(field), packageLengthOfBits(32)),
	)
}

// packageLengthOfBits encodes the width of a field, a package length that does not
// include itself.
func packageLengthOfBits(n byte) aml { return aml{n} }

// eisaID is a _HID in its compressed form (19.3.4).
func eisaID(id string) aml {
	v := uint16(id[0]-'@')<<10 | uint16(id[1]-'@')<<5 | uint16(id[2]-'@')
	out := aml{0x0c, byte(v >> 8), byte(v)}
	digit := func(c byte) byte { return byte(strings.IndexByte("0123456789ABCDEF", c)) }
	return append(out, digit(id[3])<<4|digit(id[4]), digit(id[5])<<4|digit(id[6]))
}

// Types of address space resource descriptors (6.4.3.5).
const (
	spaceMemory = 0
	spacePorts  = 1
	spaceBuses  = 2
)

// qwordSpace describes a range of addresses that a bridge passes on. Its ends are fixed,
// and it can be written.
func qwordSpace(kind byte, r Range) []byte {
	flags := byte(0x01) // read and write
	if kind == spacePorts {
		flags = 0x03 // all of the range
	}
	if kind == spaceBuses {
		flags = 0
	}
	b := []byte{0x8a, 0x2b, 0, kind, 0x0c, flags}
	for _, v := range []uint64{0, r.Start, r.End - 1, 0, r.Len()} {
		b = binary.LittleEndian.AppendUint64(b, v)
	}
	return b
}

// resourceEnd ends a list of descriptors (6.4.2.9); its checksum is not used.
var resourceEnd = []byte{0x79, 0}
