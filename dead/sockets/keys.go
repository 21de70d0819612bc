package sockets

import (
	"encoding/binary"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/kernel"
)

// hasher computes the hash of connections of one kind, as the kernel does. Its form
// and its random keys are found by comparison with the hashes that are stored with
// connections.
type hasher struct {
	form           form // nil if it is not known
	key, remoteKey uint32
}

// sample is a connection with the hash that is stored with it.
type sample struct {
	tuple
	hash uint32
}

// maxSamples is how many connections of each kind are used to find the keys.
const maxSamples = 32

// findHashers finds the hashers for IPv4 and IPv6. The keys are in variables of the
// hash functions, whose addresses not every kernel tells; so all values that these
// functions load are tried, and the key is the one with which most samples have the
// right hash. If there is none, a connection is checked against its chain by its
// stored hash alone.
func (r *reader) findHashers(tables []table) [2]hasher {
	samples := r.samples(tables)
	loads6 := loads(r.k, "inet6_ehashfn")
	return [2]hasher{
		elect(samples[0], forms4, loads(r.k, "inet_ehashfn"), []uint32{0}),
		elect(samples[1], forms6, loads6, loads6),
	}
}

// samples returns some connections that are hashed as IPv4, and some that are hashed as IPv6.
func (r *reader) samples(tables []table) (all [2][]sample) {
	for _, t := range tables {
		r.walk(t, func(c Connection, err error) bool {
			if err == nil {
				// Both were read already.
				b, err := r.k.Bytes(r.l.commonIn.In(c.Addr), r.l.common.size)
				if kind := r.kind(&c); err == nil && len(all[kind]) < maxSamples {
					all[kind] = append(all[kind], sample{r.tuple(b, kind), uint32(r.l.common.hash.Uint(b))})
				}
			}
			return len(all[0]) < maxSamples || len(all[1]) < maxSamples
		})
	}
	return all
}

// kind returns the index of a connection's hasher.
func (r *reader) kind(c *Connection) int {
	if c.Remote.Addr().Is4() {
		return 0
	}
	return 1
}

// tuple reads what a connection's hash is computed from, out of its struct sock_common.
func (r *reader) tuple(b []byte, kind int) tuple {
	l := &r.l.common
	t := tuple{
		local: l.local4.Bytes(b), remote: l.remote4.Bytes(b), localPort: uint32(l.num.Uint(b)),
		remotePort: uint32(l.remotePort.Uint(b)), mix: r.spaces[l.net.Pointer(b)].hashMix,
	}
	if kind == 1 {
		t.local, t.remote = l.local6.Bytes(b), l.remote6.Bytes(b)
	}
	return t
}

// elect returns the first hasher that more than half of the samples agree with.
func elect(samples []sample, forms []form, keys, remoteKeys []uint32) hasher {
	for _, f := range forms {
		for _, key := range keys {
			for _, remote := range remoteKeys {
				votes := 0
				for i := range samples {
					if f(&samples[i].tuple, key, remote) == samples[i].hash {
						votes++
					}
				}
				if 2*votes > len(samples) {
					return hasher{f, key, remote}
				}
			}
		}
	}
	return hasher{}
}

const (
	functionSize = 512 // how much of a function is searched, in bytes; they have 150 to 400
	maxLoads     = 16
)

// loads returns the words that the beginning of a function loads or adds from fixed
// addresses: opcodes 8B and 03 with an address relative to the next instruction
// (Intel SDM volume 2, 2.2.1.6). Bytes that only look like such an instruction yield
// an additional word.
func loads(k *kernel.Kernel, name string) []uint32 {
	at, err := k.Symbol(name)
	if err != nil {
		return nil
	}
	code, err := k.Bytes(at, functionSize)
	if err != nil {
		return nil
	}
	var words []uint32
	for i := 0; i+6 <= len(code) && len(words) < maxLoads; i++ {
		if (code[i] != 0x8b && code[i] != 0x03) || code[i+1]&0xc7 != 0x05 {
			continue
		}
		offset := int32(binary.LittleEndian.Uint32(code[i+2:]))
		if v, err := k.U32(at + addr.Virt(i+6) + addr.Virt(int64(offset))); err == nil {
			words = append(words, v)
		}
	}
	return words
}
