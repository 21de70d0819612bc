package oracle

import (
	"errors"
	"os"

	"understudy.dev/understudy/internal/lab/sparse"
)

// copySparse copies a file of size bytes, and keeps its holes.
func copySparse(from, to string, size int64) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if err := dst.Truncate(size); err != nil {
		return err
	}
	return sparse.Copy(dst, src)
}
