package workload

import (
	"encoding/binary"
	"fmt"
)

// A payload is a run of a pool of random bytes, stamped in place at every PageSize bytes, so that making one costs
// next to nothing and yet every page of a file tells which write it came from. The bytes of the base tree have their
// top bit clear and those of Run have it set: whatever Run writes differs from the disk in every single byte.

const (
	maxPayload = 512 << 10 // bytes of one write
	poolSpread = 1 << 20   // bytes: where in the pool a payload may begin
	lowBits    = 0x7f7f7f7f7f7f7f7f
	highBits   = 0x8080808080808080
)

// side tells the base tree's content from that of Run.
type side uint64

const (
	baseSide side = iota
	runSide
)

// pool makes the payloads of one side.
type pool struct {
	seed  uint64
	side  side
	bytes []byte
}

func newPool(seed uint64, s side) *pool {
	p := &pool{seed: mix(seed + uint64(s)), side: s, bytes: make([]byte, poolSpread+maxPayload)}
	state := p.seed
	for i := 0; i < len(p.bytes); i += 8 {
		state += 0x9e3779b97f4a7c15
		p.put(i, mix(state))
	}
	return p
}

// put stores a word at i with the top bits of its bytes as the side demands.
func (p *pool) put(i int, word uint64) {
	word &= lowBits
	if p.side == runSide {
		word |= highBits
	}
	binary.LittleEndian.PutUint64(p.bytes[i:], word)
}

// payload returns the content of write id, n bytes up to maxPayload. It is valid until the next call.
func (p *pool) payload(id uint64, n int) []byte {
	key := mix(p.seed ^ id)
	start := int(key%(poolSpread/PageSize)) * PageSize
	for i := 0; i < n; i += PageSize {
		key += 0x9e3779b97f4a7c15
		word := mix(key)
		p.put(start+i, word)
		p.put(start+i+8, mix(word))
	}
	return p.bytes[start : start+n]
}

// fill appends n bytes of content to buf, from the writes id and following.
func (p *pool) fill(buf []byte, id uint64, n int64) []byte {
	for ; n > 0; id++ {
		part := p.payload(id, int(min(n, maxPayload)))
		buf = append(buf, part...)
		n -= int64(len(part))
	}
	return buf
}

// payloads is how many payloads n bytes take.
func payloads(n int64) uint64 {
	return uint64((n + maxPayload - 1) / maxPayload)
}

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// probeSize is the size of the probe file in bytes, before and after: two pages, the second one partly filled.
const probeSize = 6000

// probeText is the probe file's content: readable, of fixed size, and different on the
// two sides in its first line and in every token.
func probeText(seed uint64, s side) []byte {
	text := make([]byte, 0, probeSize+64)
	text = append(text, [...]string{"state: saved\n", "state: unsaved\n"}[s]...)
	for state := mix(seed) + uint64(s); len(text) < probeSize; {
		state += 0x9e3779b97f4a7c15
		text = fmt.Appendf(text, "token: %016x\n", mix(state))
	}
	return append(text[:probeSize-1], '\n')
}
