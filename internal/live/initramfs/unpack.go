package initramfs

import (
	"fmt"
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxModule bounds the size of an unpacked module file, in bytes. Graphics drivers have some
// ten MiB, and no others are as large.
const maxModule = 256 << 20

type unpacker func(io.Reader) (io.Reader, error)

// unpackers are the decompressors, by the suffix behind .ko in the name of a compressed
// module (scripts/Makefile.modinst, CONFIG_MODULE_COMPRESS_*).
var unpackers = map[string]unpacker{
	".gz":  func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
	".xz":  func(r io.Reader) (io.Reader, error) { return xz.NewReader(r) },
	".zst": func(r io.Reader) (io.Reader, error) { return zstd.NewReader(r, zstd.WithDecoderConcurrency(1)) },
}

// isModule reports whether a file of that name is a module, compressed or not.
func isModule(name string) bool {
	_, suffix, ok := strings.Cut(name, ".ko")
	return ok && (suffix == "" || unpackers[suffix] != nil)
}

// unpack returns the content of a compressed file, if that has at most limit bytes.
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
