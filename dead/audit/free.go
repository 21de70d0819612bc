package audit

import (
	"fmt"
	"io"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
)

// Free reports whether a block of a file system is free according to the bitmap of its group,
// whose checksum must be right. With bigalloc a block is free only if its whole cluster is.
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
