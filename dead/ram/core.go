package ram

import (
	"encoding/binary"
	"fmt"
	"io"

	"understudy.dev/understudy/dead/addr"
)

// CoreFile is a file, or a block device, that a core is written to.
type CoreFile interface {
	io.WriterAt
	Sync() error
}

// coreChunk is how much is written at a time, in bytes.
const coreChunk = 1 << 20

// coreData returns where the memory begins in a core. Before it are only the headers, and padding.
func coreData(ranges []addr.PhysRange) int64 {
	return int64((elfHeaderSize + len(ranges)*elfPhdrSize + addr.PageSize - 1) &^ (addr.PageSize - 1))
}

// CoreSize returns the size of a core of such memory, in bytes.
func CoreSize(ranges []addr.PhysRange) int64 {
	size := coreData(ranges)
	for _, r := range ranges {
		size += int64(r.Len())
	}
	return size
}

// WriteCore writes all of a memory as an ELF core (OpenFile), from the beginning of f on; the rest of f stays as
// it is. The headers come last, when everything else is durable: what an interrupted write leaves is no core.
// Memory that cannot be read is an error. m must be of an x86-64 machine.
func WriteCore(f CoreFile, m Memory) error {
	if err := writeCore(f, m); err != nil {
		return fmt.Errorf("write core: %w", err)
	}
	return nil
}

func writeCore(f CoreFile, m Memory) error {
	ranges := m.Ranges()
	if len(ranges) == 0 || len(ranges) >= elfPhnumX {
		return fmt.Errorf("memory has %d ranges, which the program headers of an ELF core cannot hold", len(ranges))
	}
	head := coreHead(ranges)
	if err := writeDurably(f, make([]byte, len(head))); err != nil {
		return err
	}
	at := int64(len(head))
	for _, r := range ranges {
		for pa := r.Start; pa < r.End; pa += coreChunk {
			b, err := m.View(pa, int(min(coreChunk, r.End-pa)))
			if err == nil {
				_, err = f.WriteAt(b, at)
			}
			if err != nil {
				return err
			}
			at += int64(len(b))
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return writeDurably(f, head)
}

// writeDurably writes the beginning of a file, and syncs the file.
func writeDurably(f CoreFile, b []byte) error {
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	return f.Sync()
}

// coreHead returns the Elf64_Ehdr of a core and its Elf64_Phdrs, in whole pages.
func coreHead(ranges []addr.PhysRange) []byte {
	b, le := make([]byte, coreData(ranges)), binary.LittleEndian
	copy(b, elfMagic)
	b[elfClass], b[elfData], b[6] = 2, 1, 1 // EI_VERSION
	le.PutUint16(b[16:], elfTypeCore)
	le.PutUint16(b[18:], elfMachineX64)
	le.PutUint32(b[20:], 1) // e_version
	le.PutUint64(b[32:], elfHeaderSize)
	le.PutUint16(b[52:], elfHeaderSize)
	le.PutUint16(b[54:], elfPhdrSize)
	le.PutUint16(b[56:], uint16(len(ranges)))
	at := uint64(len(b))
	for i, r := range ranges {
		p := b[elfHeaderSize+i*elfPhdrSize:]
		le.PutUint32(p, elfPTLoad)
		le.PutUint32(p[4:], 7) // PF_R, PF_W and PF_X
		le.PutUint64(p[8:], at)
		le.PutUint64(p[24:], uint64(r.Start))
		le.PutUint64(p[32:], r.Len())
		le.PutUint64(p[40:], r.Len())
		at += r.Len()
	}
	return b
}
