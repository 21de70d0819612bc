package filewriter

import (
	"encoding/binary"
	"fmt"
	"math"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

// Types of file handles (include/linux/exportfs.h): FILEID_INO32_GEN, which holds
// a 32-bit inode number and its generation; the same with a 64-bit number, which
// only XFS has (fs/xfs/xfs_export.h, XFS_FILEID_TYPE_64FLAG); and
// FILEID_BTRFS_WITHOUT_PARENT, with the number of the subvolume between the two
// (fs/btrfs/export.h, struct btrfs_fid).
const (
	handleInode32 = 0x01
	handleInode64 = 0x81
	handleBtrfs   = 0x4d
)

// handleOf is the handle by which a file system of that type knows a file. root is
// the subvolume of btrfs that it is in.
func handleOf(kind string, f *wire.File, root uint64) (unix.FileHandle, error) {
	ne := binary.NativeEndian
	switch kind {
	case "xfs":
		return unix.NewFileHandle(handleInode64, ne.AppendUint32(ne.AppendUint64(nil, f.Inode), f.Generation)), nil
	case "btrfs":
		return unix.NewFileHandle(handleBtrfs, ne.AppendUint32(ne.AppendUint64(ne.AppendUint64(nil, f.Inode), root), f.Generation)), nil
	}
	if f.Inode > math.MaxUint32 {
		return unix.FileHandle{}, fmt.Errorf("inode number %d does not fit in the file handle of ext4", f.Inode)
	}
	return unix.NewFileHandle(handleInode32, ne.AppendUint32(ne.AppendUint32(nil, uint32(f.Inode)), f.Generation)), nil
}
