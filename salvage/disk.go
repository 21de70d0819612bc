package salvage

import (
	"errors"
	"fmt"
	"io"

	"understudy/addr"
	"understudy/ext4"
	"understudy/pagecache"
)

// OnDisk is the file system that a disk says it has.
type OnDisk struct {
	Family string // "ext"
	UUID   pagecache.UUID
	// Super are the places, in bytes and whole sectors, that differ between one
	// mount and another.
	Super []addr.Span
}

// ErrNoFileSystem says that a disk does not begin with a file system that a plan
// can be checked against.
var ErrNoFileSystem = errors.New("no file system that can be written to: only ext2, ext3 and ext4 can, and only at the very beginning of the disk, without a partition table")

// Identify says what file system a disk has.
func Identify(disk io.ReaderAt) (*OnDisk, error) {
	b := make([]byte, ext4.SuperSize)
	if _, err := disk.ReadAt(b, ext4.SuperOffset); err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	ext, err := ext4.ParseSuper(b)
	if err != nil {
		return nil, ErrNoFileSystem
	}
	at := addr.Span{Off: ext4.SuperOffset, End: ext4.SuperOffset + ext4.SuperSize}
	return &OnDisk{Family: "ext", UUID: ext.UUID, Super: []addr.Span{at}}, nil
}
