package ram

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"github.com/anchore/go-lzo"
	"github.com/golang/snappy"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"

	"understudy.dev/understudy/dead/addr"
)

// decodePage decompresses a page as the flags of its descriptor say. The page must fill
// dst exactly.
func decodePage(dst, src []byte, flags uint32) error {
	var n int
	var err error
	switch flags {
	case 0:
		n = copy(dst, src)
		if len(src) != len(dst) {
			err = fmt.Errorf("%d bytes", len(src))
		}
	case kdumpZlib:
		n, err = inflate(dst, src)
	case kdumpLZO:
		n, err = lzo.Decompress(src, dst)
	case kdumpSnappy:
		n, err = unsnap(dst, src)
	case kdumpZstd:
		var b []byte
		if b, err = zstdDecoder().DecodeAll(src, dst[:0:len(dst)]); err == nil {
			n = copy(dst, b) // onto itself
		}
	default:
		err = fmt.Errorf("unknown flags %#x", flags)
	}
	if err == nil && n != len(dst) {
		err = fmt.Errorf("%d bytes came out", n)
	}
	if err != nil {
		return fmt.Errorf("page is damaged: %w", err)
	}
	return nil
}

// zstdDecoder makes the decoder when it is first needed. DecodeAll is safe for
// concurrent use and stops at the capacity that it is given.
var zstdDecoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderMaxMemory(16*addr.PageSize))
	if err != nil {
		panic(err) // the constant options are wrong
	}
	return d
})

// inflaters pools readers of zlib streams, which are large.
var inflaters sync.Pool

func inflate(dst, src []byte) (int, error) {
	in := bytes.NewReader(src)
	r, ok := inflaters.Get().(io.ReadCloser)
	var err error
	if ok {
		err = r.(zlib.Resetter).Reset(in, nil)
	} else {
		r, err = zlib.NewReader(in)
	}
	if err != nil {
		return 0, err
	}
	defer inflaters.Put(r)
	n, err := io.ReadFull(r, dst)
	if err != nil {
		return n, err
	}
	// The checksum is verified at the end of the stream.
	var more [1]byte
	if extra, err := r.Read(more[:]); extra != 0 || err != io.EOF {
		return n, fmt.Errorf("the compressed data goes on after the page: %w", err)
	}
	return n, nil
}

// unsnap decodes a snappy block, which has its own length in it.
func unsnap(dst, src []byte) (int, error) {
	n, err := snappy.DecodedLen(src)
	if err != nil {
		return 0, err
	}
	if n != len(dst) {
		return 0, fmt.Errorf("%d bytes instead of %d", n, len(dst))
	}
	_, err = snappy.Decode(dst, src)
	return n, err
}
