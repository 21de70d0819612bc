package ram

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"

	"understudy.dev/understudy/dead/addr"
)

// packer is a program that compresses whole files.
type packer struct {
	magic, name string
	reader      func(io.Reader) (io.Reader, error)
}

// packers are recognised by what their files begin with: RFC 1952; the .xz file format 1.1.0, 2.1.1.1;
// RFC 8878, 3.1.1; the LZ4 frame format 1.6.4, and bzip2's own source.
var packers = []packer{
	{"\x1f\x8b\x08", "gzip", func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
	{"\xfd7zXZ\x00", "xz", func(r io.Reader) (io.Reader, error) { return xz.NewReader(r) }},
	{"\x28\xb5\x2f\xfd", "zstd", unzstd},
	{"\x04\x22\x4d\x18", "lz4", func(r io.Reader) (io.Reader, error) { return lz4.NewReader(r), nil }},
	{"BZh", "bzip2", func(r io.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil }},
}

// zstdWindow is the largest window that zstd itself writes (--ultra --long=31).
const zstdWindow = 2 << 30

func unzstd(r io.Reader) (io.Reader, error) {
	d, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(zstdWindow))
	if err != nil {
		return nil, err
	}
	return d.IOReadCloser(), nil
}

func packerOf(head []byte) *packer {
	for i := range packers {
		if bytes.HasPrefix(head, []byte(packers[i].magic)) {
			return &packers[i]
		}
	}
	return nil
}

// unpack writes what comes out of a compressed file, from an offset on, to a file
// without a name in the directory for temporary files (TMPDIR), with holes where
// it is zero. The caller still closes in.
func (p *packer) unpack(in input, off int64) (input, error) {
	r, err := p.reader(bufio.NewReaderSize(io.NewSectionReader(in, off, in.Size()-off), 1<<20))
	if err != nil {
		return nil, p.damaged(err)
	}
	if c, ok := r.(io.Closer); ok {
		defer c.Close()
	}
	f, err := os.CreateTemp("", "understudy-memory-")
	if err != nil {
		return nil, fmt.Errorf("unpack %s file: %w", p.name, err)
	}
	size, err := p.spool(f, r)
	// Where an open file cannot be removed, it stays.
	_ = os.Remove(f.Name())
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return fileInput{f, size}, nil
}

// spool copies everything that is not zero, and returns the size of the file.
func (p *packer) spool(f *os.File, r io.Reader) (int64, error) {
	buf, zeros := make([]byte, 256<<10), make([]byte, addr.PageSize)
	for size := int64(0); ; {
		n, err := readAll(r, buf)
		if size+int64(n) > maxPhys {
			return 0, malformed(p.name+" file", "more than %d TiB come out", maxPhys>>40)
		}
		for at := 0; at < n; at += addr.PageSize {
			part := buf[at:min(n, at+addr.PageSize)]
			if bytes.Equal(part, zeros[:len(part)]) {
				continue
			}
			if _, err := f.WriteAt(part, size+int64(at)); err != nil {
				return 0, fmt.Errorf("unpack %s file: %w: TMPDIR must name a directory with room for all of the memory", p.name, err)
			}
		}
		size += int64(n)
		switch {
		case err == io.EOF:
			return size, f.Truncate(size)
		case err != nil:
			return 0, p.damaged(err)
		}
	}
}

// readAll fills a buffer. Unlike that of io.ReadFull, its error is the reader's own: with
// io.ErrUnexpectedEOF a decoder means a cut file.
func readAll(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var got int
		got, err = r.Read(buf[n:])
		n += got
	}
	return n, err
}

// damaged returns the error for a compressed file that cannot be unpacked completely. What came out is
// not used: nothing in a RAM file says that its end is missing.
func (p *packer) damaged(err error) error {
	return &FormatError{
		Format: p.name + " file",
		Reason: fmt.Sprintf("damaged or cut: %v", err),
		Hint:   "copy it again; if there is no other copy, unpack what can be had of it, and see what that is",
	}
}
