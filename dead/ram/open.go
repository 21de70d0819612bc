package ram

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"understudy.dev/understudy/dead/addr"
)

// input is the content of a dump file: of the file itself, or of the file that a
// flattened one represents.
type input interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// fileInput is a file as it is.
type fileInput struct {
	*os.File
	size int64
}

func (f fileInput) Size() int64 { return f.size }

// OpenFile opens the memory of a machine, read-only. It recognises the format by the content of
// the file: an ELF core (ELF64, x86-64 or arm64, such as QEMU's dump-guest-memory,
// makedumpfile -E and /proc/vmcore write), a kdump-compressed file, makedumpfile's
// flattened form of both, a capture by LiME or AVML, a migration stream of QEMU or what virsh
// save made of one, a VMware .vmss or .vmsn file, or the .vmem file beside one. A file without a signature is
// the RAM file of a machine of QEMU (memory-backend-file with share=on) or another, which may be
// dead or running: an Unarranged. Any of these may be compressed as a whole (gzip, xz, zstd,
// lz4, bzip2): it is then unpacked to a file without a name in TMPDIR. A block device is a file, too:
// what is on it after a dump does not matter. A format that is known but not supported is a *FormatError.
func OpenFile(path string) (Memory, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open memory: %w", err)
	}
	m, err := open(f, path)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open memory %s: %w", path, err), f.Close())
	}
	return m, nil
}

func open(f *os.File, path string) (Memory, error) {
	in, packed, err := unpacked(f)
	if err != nil {
		return nil, err
	}
	m, err := openNamed(in, path)
	switch {
	case packed == "":
		return m, err
	case err != nil:
		return nil, errors.Join(err, in.Close())
	}
	if d, ok := m.(interface{ describe(func(*Info)) }); ok {
		d.describe(func(i *Info) { i.Format += ", in a " + packed + " file" })
	}
	return m, f.Close()
}

// openNamed opens a file that may belong together with another file beside it.
func openNamed(in input, path string) (Memory, error) {
	if isKcore(path) {
		return openLive(in)
	}
	head, err := readHead(in)
	if err != nil {
		return nil, err
	}
	if isVMware(head) {
		return openVMware(in, path)
	}
	if state, err := stateBeside(path); state != nil || err != nil {
		if err != nil {
			return nil, err
		}
		return state.open(in, in.Size())
	}
	return openInput(in)
}

// unpacked returns the file, or what comes out of it if it is compressed: in is another file then,
// and packed says by what it was compressed.
func unpacked(f *os.File) (in input, packed string, err error) {
	size, err := f.Seek(0, io.SeekEnd) // of a block device too
	if err != nil {
		return nil, "", err
	}
	in = fileInput{f, size}
	head, err := readHead(in)
	if err != nil {
		return nil, "", err
	}
	p := packerOf(head)
	if p == nil {
		return in, "", nil
	}
	in, err = p.unpack(in, 0)
	return in, p.name, err
}

// headSize is how many bytes of a file say what it is.
const headSize = addr.PageSize

func readHead(in input) ([]byte, error) {
	head := make([]byte, min(headSize, max(0, in.Size())))
	n, err := in.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, errGap) {
		return nil, fmt.Errorf("read head: %w", err)
	}
	return head[:n], nil
}

// openInput opens a file of any format.
func openInput(in input) (Memory, error) {
	head, err := readHead(in)
	if err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(head, []byte(flatMagic)) {
		return openDump(in, head)
	}
	flat, err := openFlat(in)
	if err != nil {
		return nil, err
	}
	if head, err = readHead(flat); err != nil {
		return nil, err
	}
	if !bytes.HasPrefix(head, []byte(elfMagic)) && !bytes.HasPrefix(head, []byte(kdumpMagic)) {
		return nil, malformed("flattened dump", "what it holds is neither an ELF core nor a kdump file")
	}
	return openDump(flat, head)
}

// openDump opens a file that is not flattened, or that a flattened one represents.
func openDump(in input, head []byte) (Memory, error) {
	for _, f := range []struct {
		magic string
		open  func(in input) (Memory, error)
	}{
		{elfMagic, openELF},
		{kdumpMagic, openKdump},
		{limeMagic, openLiME},
		{avmlMagic, openAVML},
		{streamMagic, openStream},
		{libvirtMagic, openLibvirt},
	} {
		if bytes.HasPrefix(head, []byte(f.magic)) {
			return f.open(in)
		}
	}
	if err := unsupported(head); err != nil {
		return nil, err
	}
	return openRaw(in)
}

// dumpHint names a way that always works with QEMU.
const dumpHint = "make the dump with dump-guest-memory (virsh dump --memory-only)"

// unsupported recognises files that are not the memory of a machine, or not in a form
// that can be read. Real memory begins with the real-mode interrupt vectors, or
// with zeros, and cannot be mistaken for any of these.
func unsupported(head []byte) error {
	const twice = "it was compressed twice: decompress it once"
	for _, s := range []struct {
		off               int
		magic, name, hint string
	}{
		{0, "\x1f\x8b\x08", "gzip file", twice},
		{0, "BZh91AY&SY", "bzip2 file", twice},
		{0, "\xfd7zXZ\x00", "xz file", twice},
		{0, "\x28\xb5\x2f\xfd", "zstd file", twice},
		{0, "\x04\x22\x4d\x18", "lz4 file", twice},
		{0, libvirtPart, "libvirt save file that was not finished", dumpHint},
		{0, "QFI\xfb", "qcow2 disk image", "give the memory, not the disk"},
		{0, "DISKDUMP", "diskdump file", ""},
		{0, "PAGEDU64", "Windows crash dump", ""},
		{0, "PAGEDUMP", "Windows crash dump", ""},
		{0, "\xd0\xbe\xd0\xbe", "VMware state file of an old version", ""},
		{0, "\xd0\xbe\xd2\xbe", "VMware state file of an old version", ""},
		{0, "\xd1\xba\xd1\xba", "VMware state file of an old version", ""},
		{addr.PageSize - 10, "S1SUSPEND", "hibernation image", ""},
	} {
		if len(head) >= s.off+len(s.magic) && string(head[s.off:s.off+len(s.magic)]) == s.magic {
			return &FormatError{Format: s.name, Reason: "not supported", Hint: s.hint}
		}
	}
	return nil
}

// openRaw opens the RAM file of a machine.
func openRaw(in input) (Memory, error) { return openRawOf(in, in.Size(), "RAM file") }

// openRawOf opens size bytes of a file as a RAM file, and names their format.
func openRawOf(in input, size int64, format string) (Memory, error) {
	if size <= 0 || size%addr.PageSize != 0 || size > maxPhys {
		return nil, malformed("file without a known signature", "%d bytes are not the whole pages of a RAM file", size)
	}
	im := image{info: Info{Format: format}}
	x := guesses(size)[0].extents(size)
	im.setMemory(x.ranges(), x.bytes())
	m, err := mapExtents(in, x, im)
	if err != nil {
		return nil, err
	}
	return &raw{arrangeable: m.(arrangeable), size: size, blocks: 1}, nil
}

// maxPhys bounds physical addresses, in bytes: 256 TiB. x86-64 kernels with four levels
// of page tables have 64 TiB (MAX_PHYSMEM_BITS is 46), and nobody dumps more; arm64 has 48
// bits, and machines whose second half begins at 64 TiB.
const maxPhys = 1 << 48

// q35 splits the memory of a machine in two if it does not fit below the hole
// for devices (QEMU 7.2, hw/i386/pc_q35.c, pc_q35_init): with 2.75 GiB or more,
// 2 GiB lie below the hole and the rest from 4 GiB on, so that gigabytes stay aligned.
// The RAM file holds both parts back to back.
const (
	q35SplitFrom = 0xb000_0000
	q35LowSize   = 0x8000_0000
)

// mapExtents gives access to memory that is stored in a file as it is: mapped where
// that is possible, otherwise read.
func mapExtents(in input, x extents, im image) (Memory, error) {
	if f, ok := in.(fileInput); ok {
		return mapFile(f.File, x, im)
	}
	return &copied{image: im, in: in, extents: x}, nil
}
