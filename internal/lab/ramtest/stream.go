package ramtest

import (
	"encoding/binary"
	"os"

	"understudy.dev/understudy/dead/addr"
)

// Stream is a migration stream of QEMU, of a machine whose first piece is all its RAM. Every
// third page is sent twice, first with other bytes.
type Stream struct {
	// Save puts the header of virsh save before it.
	Save bool
	// Blocks are the names of RAM blocks, all of the same size; empty means pc.ram.
	Blocks []string
	// Capability is a migration capability that the stream says it was made with; empty means none.
	Capability string
}

// Write implements Format.
func (s Stream) Write(f *os.File, pieces []Piece) error {
	blocks := s.Blocks
	if len(blocks) == 0 {
		blocks = []string{"pc.ram"}
	}
	var out []byte
	if s.Save {
		const xml = "<domain type='kvm'/>\x00"
		out = append([]byte("LibvirtQemudSave"), le(uint32(2), uint32(len(xml)), uint32(1), uint32(0), [15]uint32{})...)
		out = append(out, xml...)
	}
	be := binary.BigEndian
	u32 := func(v uint32) { out = be.AppendUint32(out, v) }
	u64 := func(v uint64) { out = be.AppendUint64(out, v) }
	name := func(s string) { out = append(append(out, byte(len(s))), s...) }
	footer := func() { out = append(out, 0x7e); u32(7) }

	out = append(out, "QEVM"...)
	u32(3)
	out = append(out, 7)
	u32(6)
	out = append(out, "pc-q35"...)
	if s.Capability != "" {
		out = append(out, 5)
		name("configuration/capabilities")
		u32(1)
		u32(1)
		name(s.Capability)
	}
	out = append(out, 1)
	u32(7)
	name("ram")
	u32(0)
	u32(4)
	p := pieces[0]
	size := uint64(p.Size) / uint64(len(blocks))
	u64(uint64(p.Size) + 1<<20 | 4)
	name("pc.bios")
	u64(1 << 20)
	for i := len(blocks) - 1; i >= 0; i-- { // in no order
		name(blocks[i])
		u64(size)
	}
	u64(0x10)
	footer()
	for round := range 2 {
		if round == 1 {
			out = append(out, 8, 0, 2, 0, 4, 0, 0, 0, 1, 8, 0, 11, 0, 0) // commands: a ping, and that the rest follows, of QEMU 10
		}
		out = append(out, byte(2+round)) // a part, the end
		u32(7)
		u64(0 | 8)
		name("pc.bios")
		out = append(out, make([]byte, addr.PageSize)...)
		last := -1
		for at := uint64(0); at < uint64(p.Size); at += addr.PageSize {
			third := at/addr.PageSize%3 == 0
			if round == 1 && !third {
				continue
			}
			page, err := p.read(p.Phys+addr.Phys(at), addr.PageSize)
			if err != nil {
				return err
			}
			if round == 0 && third {
				page[17] ^= 0xff // the guest changes it then
			}
			block, flags := int(at/size), uint64(8)
			if zero(page) {
				flags = 2
			}
			if block == last {
				flags |= 0x20
			}
			u64(at%size | flags)
			if block != last {
				name(blocks[block])
				last = block
			}
			if flags&2 != 0 {
				page = page[:1]
			}
			out = append(out, page...)
		}
		u64(0x10)
		footer()
	}
	out = append(out, 4, 0, 0, 0, 9) // a device
	name("timer")
	_, err := f.Write(append(out, "what only it knows"...))
	return err
}
