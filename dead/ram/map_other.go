//go:build !unix

package ram

import "os"

// mapFile reads memory from a file piece by piece: the portable way, slower than
// mapping it.
func mapFile(f *os.File, x extents, im image) (Memory, error) {
	stat, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return &copied{image: im, in: fileInput{f, stat.Size()}, extents: x}, nil
}
