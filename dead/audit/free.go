package audit

import (
	"fmt"
	"io"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// Free reports whether a block of a file system is free by the bitmap of its group, which must
// have its checksum. With bigalloc it is not, if any block of its cluster is in use.
func Free(disk io.ReaderAt, b addr.Block) (bool, error) {
	fs, err := ext4.Open(disk)
	if err == nil && !fs.Super.Contains(b, 1) {
		err = fmt.Errorf("block %d is outside of the file system", b)
	}
	if err != nil {
		return false, err
	}
	v := newView(fs.Super, disk, nil, &budget{limit: minReads, pieces: maxPieces})
	group, n := clusterGroup(&v.super, b/addr.Block(ratio(&v.super)))
	used, err := v.blockMap(group)
	if err != nil {
		return false, fmt.Errorf("block %d: %w", b, err)
	}
	return !used.has(n), nil
}
