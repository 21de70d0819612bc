package ramtest

import (
	"encoding/binary"

	"understudy.dev/understudy/dead/addr"
)

// VMware makes the two files of a suspended VMware machine: its state, and its memory
// (.vmem), which is nil if it is embedded in the state.
func VMware(pieces []Piece, embedded bool) (state, memory []byte, err error) {
	var tags []byte
	tag := func(name string, size byte, index ...uint32) {
		tags = append(append(tags, size|byte(len(index))<<6, byte(len(name))), name...)
		for _, i := range index {
			tags = binary.LittleEndian.AppendUint32(tags, i)
		}
	}
	number := func(name string, v uint32, index ...uint32) {
		tag(name, 4, index...)
		tags = binary.LittleEndian.AppendUint32(tags, v)
	}
	tag("align_mask", 2, 0)
	tags = append(tags, 0xff, 0x0f)
	tag("screen", 62) // a compressed block
	tags = append(tags, le(uint64(5), uint64(100), uint16(0))...)
	tags = append(tags, "pixel"...)
	number("regionsCount", uint32(len(pieces)))
	for i, p := range pieces {
		b, err := p.read(p.Phys, int(p.Size))
		if err != nil {
			return nil, nil, err
		}
		number("regionPageNum", uint32(len(memory)/addr.PageSize), uint32(i))
		number("regionPPN", uint32(addr.Pages4K.PFN(p.Phys)), uint32(i))
		number("regionSize", uint32(len(b)/addr.PageSize), uint32(i))
		memory = append(memory, b...)
	}
	const at = 12 + 2*80
	if embedded {
		tag("Memory", 63, 0, 0)
		const pad = 13
		tags = append(tags, le(uint64(len(memory)), uint64(len(memory)), uint16(pad), [pad]byte{})...)
		tags, memory = append(tags, memory...), nil
	}
	tags = append(tags, 0, 0)
	group := func(name string, size int) []byte {
		return append(append([]byte(name), make([]byte, 64-len(name))...), le(uint64(at), uint64(size))...)
	}
	state = append([]byte("\xd2\xbe\xd2\xbe"), le(uint32(8), uint32(2))...)
	state = append(append(state, group("cpu", 0)...), group("memory", len(tags))...)
	return append(state, tags...), memory, nil
}
