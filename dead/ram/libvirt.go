package ram

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// What virsh save writes (libvirt, src/qemu/qemu_saveimage.h, struct _virQEMUSaveHeader): a
// header, with numbers in the byte order of its machine; XML and a cookie, whose length is in the
// header; and QEMU's migration stream, which may be compressed.
const (
	libvirtMagic      = "LibvirtQemudSave"
	libvirtPart       = "LibvirtQemudPart" // the magic while the file is being written
	libvirtName       = "libvirt save file"
	libvirtHeaderSize = 16 + 19*4
	libvirtVersion    = 2
)

// libvirtFormats are the formats by number (enum virQEMUSaveFormat).
var libvirtFormats = []string{"raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse"}

// openLibvirt opens the stream in a save file.
func openLibvirt(in input) (Memory, error) {
	b := make([]byte, libvirtHeaderSize)
	if err := inside(libvirtName, in, 0, libvirtHeaderSize); err != nil {
		return nil, err
	}
	if _, err := in.ReadAt(b, 0); err != nil {
		return nil, fmt.Errorf("read save header: %w", err)
	}
	le := binary.LittleEndian
	version, length, format := le.Uint32(b[16:]), le.Uint32(b[20:]), le.Uint32(b[28:])
	switch {
	case version != libvirtVersion:
		return nil, malformed(libvirtName, "version %d is not understood", version)
	case format >= uint32(len(libvirtFormats)):
		return nil, malformed(libvirtName, "format %d is not understood", format)
	}
	start := libvirtHeaderSize + uint64(length)
	if err := inside(libvirtName, in, start, 1); err != nil {
		return nil, err
	}
	rest := behind{in, int64(start)}
	if format == 0 {
		return openSaved(rest)
	}
	head, err := readHead(rest)
	if err != nil {
		return nil, err
	}
	p := packerOf(head)
	if p == nil || p.name != libvirtFormats[format] {
		return nil, &FormatError{
			Format: libvirtName,
			Reason: fmt.Sprintf("its memory is in the format %s, which is not supported", libvirtFormats[format]),
			Hint:   dumpHint,
		}
	}
	out, err := p.unpack(rest, 0)
	if err != nil {
		return nil, err
	}
	m, err := openSaved(out)
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return m, in.Close()
}

func openSaved(in input) (Memory, error) {
	m, err := openStream(in)
	if err == nil {
		m.(*raw).describe(func(i *Info) { i.Format += ", in a " + libvirtName })
	}
	return m, err
}

// behind is the part of a file from an offset on.
type behind struct {
	input
	off int64
}

func (b behind) ReadAt(p []byte, off int64) (int, error) { return b.input.ReadAt(p, b.off+off) }
func (b behind) Size() int64                             { return b.input.Size() - b.off }
