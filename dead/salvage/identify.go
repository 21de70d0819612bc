package salvage

import (
	"errors"
	"fmt"
	"io"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/pagecache"
)

// OnDisk is the file system that a disk says it has.
type OnDisk struct {
	Family string // "ext", "xfs" or "btrfs"
	UUID   pagecache.UUID
	// Super are the spans, in bytes and whole sectors, that differ between one
	// mount and another.
	Super []addr.Span
	Log   addr.Span // of XFS, in bytes; empty for others
}

// ErrNoFileSystem says that a disk does not begin with a file system that a plan
// can be checked against.
var ErrNoFileSystem = errors.New("no file system that can be written to: only ext2, ext3, ext4, XFS and btrfs can, and only at the very beginning of the disk, or of a partition or a logical volume that is named")

// Identify says what file system a disk has.
func Identify(disk io.ReaderAt) (*OnDisk, error) {
	look := func(off int64, n int) ([]byte, addr.Span, error) {
		b := make([]byte, n)
		_, err := disk.ReadAt(b, off)
		if errors.Is(err, io.EOF) {
			err = nil // too small for that one
		}
		return b, addr.Span{Off: off, End: off + int64(n)}, err
	}
	b, at, err := look(ext4.SuperOffset, ext4.SuperSize)
	if err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	if super, err := ext4.ParseSuper(b); err == nil {
		return &OnDisk{Family: "ext", UUID: super.UUID, Super: []addr.Span{at}}, nil
	}
	if b, at, err = look(0, xfsSuperSize); err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	xfs, err := parseXFSSuper(b)
	if err == nil {
		return &OnDisk{Family: "xfs", UUID: xfs.uuid, Super: []addr.Span{at}, Log: addr.Span{Off: xfs.logStart, End: xfs.logStart + xfs.logSize}}, nil
	}
	if !errors.Is(err, errNotXFS) {
		return nil, err
	}
	if b, at, err = look(btrfsSuperOffset, pagecache.BtrfsSuperSize); err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	if btrfs, err := parseBtrfsSuper(b); err == nil {
		return &OnDisk{Family: "btrfs", UUID: btrfs.uuid, Super: []addr.Span{at}}, nil
	}
	return nil, ErrNoFileSystem
}
