package initramfs

import (
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxModule bounds what a compressed module file unpacks to, in bytes; drivers of graphics
// have some ten MiB, and no others are as large.
const maxModule = 256 << 20

type unpacker func(io.Reader) (io.Reader, error)

// unpackers are by what stands behind .ko in the name of a compressed module
// (scripts/Makefile.modinst, CONFIG_MODULE_COMPRESS_*).
var unpackers = map[string]unpacker{
	".gz":  func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
	".xz":  func(r io.Reader) (io.Reader, error) { return xz.NewReader(r) },
	".zst": func(r io.Reader) (io.Reader, error) { return zstd.NewReader(r, zstd.WithDecoderConcurrency(1)) },
}

// isModule says whether a file of that name is a module, compressed or not.
func isModule(name string) bool {
	_, suffix, ok := strings.Cut(name, ".ko")
	return ok && (suffix == "" || unpackers[suffix] != nil)
}

// unpack returns all that comes out of a compressed file, if it is at most limit bytes.
func unpack(packed io.Reader, by unpacker, limit int64) ([]byte, error) {
	r, err := by(packed)
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	if int64(len(plain)) > limit {
		return nil, fmt.Errorf("unpack: more than %d MiB come out", limit>>20)
	}
	return plain, nil
}
