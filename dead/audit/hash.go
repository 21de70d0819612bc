package audit

import (
	mathbits "math/bits"

	"understudy.dev/understudy/dead/ext4"
)

// Kinds of hashes of names (fs/ext4/ext4.h, DX_HASH_*); those with unsigned
// characters are numbered 3 higher.
const (
	hashLegacy = iota
	hashHalfMD4
	hashTEA
	hashKinds
)

// nameHash returns the hash of a name in a directory's index. Its lowest bit is
// clear (fs/ext4/hash.c, ext4fs_dirhash).
func nameHash(s *ext4.Super, kind byte, name []byte) uint32 {
	state := [4]uint32{0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}
	if s.HashSeed != [4]uint32{} {
		state = s.HashSeed
	}
	h := uint32(0)
	switch kind {
	case hashLegacy:
		h = legacyHash(name, s.HashUnsigned)
	case hashHalfMD4:
		var in [8]uint32
		for ; len(name) > 0; name = name[min(len(name), 32):] {
			words(name, in[:], s.HashUnsigned)
			halfMD4(&state, &in)
		}
		h = state[1]
	case hashTEA:
		var in [4]uint32
		for ; len(name) > 0; name = name[min(len(name), 16):] {
			words(name, in[:], s.HashUnsigned)
			tea(&state, &in)
		}
		h = state[0]
	}
	h &^= 1
	if h == 0xfffffffe { // it marks the end
		h -= 2
	}
	return h
}

// widen converts a character as C does, signed or unsigned.
func widen(c byte, unsigned bool) uint32 {
	if unsigned {
		return uint32(c)
	}
	return uint32(int32(int8(c)))
}

func legacyHash(name []byte, unsigned bool) uint32 {
	a, b := uint32(0x12a3fe2d), uint32(0x37abe8f9)
	for _, c := range name {
		h := b + (a ^ widen(c, unsigned)*7152373)
		if h&0x80000000 != 0 {
			h -= 0x7fffffff
		}
		a, b = h, a
	}
	return a << 1
}

// words packs the beginning of a name into words, and pads them with its length
// (str2hashbuf).
func words(name []byte, out []uint32, unsigned bool) {
	pad := uint32(len(name)) | uint32(len(name))<<8
	pad |= pad << 16
	for i := range out {
		v := pad
		for _, c := range name[min(len(name), 4*i):min(len(name), 4*i+4)] {
			v = widen(c, unsigned) + v<<8
		}
		out[i] = v
	}
}

// halfMD4 is the three rounds of MD4 (RFC 1320) over half as much input.
func halfMD4(state *[4]uint32, in *[8]uint32) {
	f := func(x, y, z uint32) uint32 { return z ^ x&(y^z) }
	g := func(x, y, z uint32) uint32 { return x&y + (x^y)&z }
	h := func(x, y, z uint32) uint32 { return x ^ y ^ z }
	rounds := [...]struct {
		mix   func(x, y, z uint32) uint32
		add   uint32
		order [8]int
		turn  [4]int
	}{
		{f, 0, [8]int{0, 1, 2, 3, 4, 5, 6, 7}, [4]int{3, 7, 11, 19}},
		{g, 0x5a827999, [8]int{1, 3, 5, 7, 0, 2, 4, 6}, [4]int{3, 5, 9, 13}},
		{h, 0x6ed9eba1, [8]int{3, 7, 2, 6, 1, 5, 0, 4}, [4]int{3, 9, 11, 15}},
	}
	a, b, c, d := state[0], state[1], state[2], state[3]
	for _, r := range rounds {
		for i, at := range r.order {
			a += r.mix(b, c, d) + in[at] + r.add
			a = mathbits.RotateLeft32(a, r.turn[i%4])
			a, b, c, d = d, a, b, c
		}
	}
	state[0] += a
	state[1] += b
	state[2] += c
	state[3] += d
}

// tea is the Tiny Encryption Algorithm with the name as its key.
func tea(state *[4]uint32, in *[4]uint32) {
	x, y, sum := state[0], state[1], uint32(0)
	for range 16 {
		sum += 0x9e3779b9
		x += (y<<4 + in[0]) ^ (y + sum) ^ (y>>5 + in[1])
		y += (x<<4 + in[2]) ^ (x + sum) ^ (x>>5 + in[3])
	}
	state[0] += x
	state[1] += y
}
