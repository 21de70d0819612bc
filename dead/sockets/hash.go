package sockets

import (
	"encoding/binary"
	"math/bits"
)

// tuple is what the hash of a connection is computed from.
type tuple struct {
	local, remote         []byte // addresses, of 4 or 16 bytes
	localPort, remotePort uint32 // localPort in host byte order, remotePort in network byte order
	mix                   uint32 // of its namespace
}

// form is a way to compute the hash of a connection (net/ipv4/inet_hashtables.c,
// inet_ehashfn; net/ipv6/inet6_hashtables.c, inet6_ehashfn).
type form func(t *tuple, key, remoteKey uint32) uint32

// forms4 are the forms for IPv4: with both ports in one word; and since 6.15, with the
// local port added to the hash (commit 9544d60a2605).
var forms4 = []form{
	func(t *tuple, key, _ uint32) uint32 {
		return hash3(word(t.local, 0), word(t.remote, 0), t.localPort<<16|t.remotePort, key+t.mix)
	},
	func(t *tuple, key, _ uint32) uint32 {
		return t.localPort + hash3(word(t.local, 0), word(t.remote, 0), t.remotePort, key+t.mix)
	},
}

// forms6 are the forms for IPv6: the same two, with the last word of the local address
// and a hash of the remote one; then one with all words of both, as observed on 7.2.
var forms6 = []form{
	func(t *tuple, key, remoteKey uint32) uint32 {
		return hash3(word(t.local, 3), hash4(t.remote, remoteKey), t.localPort<<16|t.remotePort, key+t.mix)
	},
	func(t *tuple, key, remoteKey uint32) uint32 {
		return t.localPort + hash3(word(t.local, 3), hash4(t.remote, remoteKey), t.remotePort, key+t.mix)
	},
	func(t *tuple, key, _ uint32) uint32 {
		a, b, c := mix(key+(word(t.local, 0)^t.mix), key+word(t.local, 1), key+word(t.local, 2))
		a, b, c = mix(a+word(t.local, 3), b+word(t.remote, 0), c+word(t.remote, 1))
		return t.localPort + finish(a+word(t.remote, 2), b+word(t.remote, 3), c+t.remotePort)
	},
}

func word(b []byte, i int) uint32 { return binary.LittleEndian.Uint32(b[4*i:]) }

// hashSeed is JHASH_INITVAL (include/linux/jhash.h).
const hashSeed = 0xdeadbeef

// hash3 hashes three words, and hash4 the four of 16 bytes, by lookup3 of Bob
// Jenkins (public domain; include/linux/jhash.h).
func hash3(a, b, c, key uint32) uint32 {
	key += hashSeed + 3<<2
	return finish(a+key, b+key, c+key)
}

func hash4(w []byte, key uint32) uint32 {
	key += hashSeed + 4<<2
	a, b, c := mix(key+word(w, 0), key+word(w, 1), key+word(w, 2))
	return finish(a+word(w, 3), b, c)
}

func mix(a, b, c uint32) (uint32, uint32, uint32) {
	a, c = (a-c)^bits.RotateLeft32(c, 4), c+b
	b, a = (b-a)^bits.RotateLeft32(a, 6), a+c
	c, b = (c-b)^bits.RotateLeft32(b, 8), b+a
	a, c = (a-c)^bits.RotateLeft32(c, 16), c+b
	b, a = (b-a)^bits.RotateLeft32(a, 19), a+c
	c, b = (c-b)^bits.RotateLeft32(b, 4), b+a
	return a, b, c
}

func finish(a, b, c uint32) uint32 {
	c = (c ^ b) - bits.RotateLeft32(b, 14)
	a = (a ^ c) - bits.RotateLeft32(c, 11)
	b = (b ^ a) - bits.RotateLeft32(a, 25)
	c = (c ^ b) - bits.RotateLeft32(b, 16)
	a = (a ^ c) - bits.RotateLeft32(c, 4)
	b = (b ^ a) - bits.RotateLeft32(a, 14)
	return (c ^ b) - bits.RotateLeft32(b, 24)
}
