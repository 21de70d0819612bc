package rootdisk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"understudy.dev/understudy/internal/live/disk"
)

// fileSystem is what a part of a disk has on it.
type fileSystem struct {
	disk.Area
	kind string // one of mountable, where ext4 is all of that family; any other is only shown to people
	uuid string
	// subvolume of btrfs is what is mounted of it, a path from its top level. Empty means the default subvolume, and
	// of the other kinds all.
	subvolume string
}

// mountable are the kinds of file systems that a system can be on, with the options of their mounts. The host
// may have a copy of an XFS mounted, which has the same UUID (xfs(5), nouuid).
var mountable = map[string]string{"ext4": "", "xfs": "nouuid", "btrfs": ""}

// mountable reports whether a system can be on a file system.
func (fs fileSystem) mountable() bool {
	_, can := mountable[fs.kind]
	return can
}

// Offsets in superblocks, in bytes, and flags.
const (
	extSuper        = 1024 // fs/ext4/ext4.h, struct ext4_super_block
	extMagic        = extSuper + 0x38
	extState        = extSuper + 0x3a
	extCompatible   = extSuper + 0x5c
	extIncompatible = extSuper + 0x60
	extUUID         = extSuper + 0x68
	extValid        = 0x1 // EXT4_VALID_FS
	extJournal      = 0x4 // EXT4_FEATURE_COMPAT_HAS_JOURNAL
	extRecover      = 0x4 // EXT4_FEATURE_INCOMPAT_RECOVER

	// fs/xfs/libxfs/xfs_format.h, struct xfs_dsb.
	xfsUUID = 32
	xfsLog  = 48 // sb_logstart; 0 if the log is on another device

	// include/uapi/linux/btrfs_tree.h, struct btrfs_super_block.
	btrfsSuper   = 65536
	btrfsUUID    = 32
	btrfsMagic   = 64
	btrfsLog     = 96 // log_root; 0 if there is no log tree to replay
	btrfsDevices = 136
)

// errUnclean is why a file system is left as it is.
var errUnclean = errors.New("its file system was not unmounted")

// probe returns the file system on a part of a disk, which r reads. errUnclean is an error if the superblock says it: that of XFS
// does not, nor that of btrfs if nothing was fsynced.
func probe(r io.ReaderAt, part disk.Area) (fileSystem, error) {
	fs := fileSystem{Area: part}
	var b [2048]byte
	if part.Len() < int64(len(b)) {
		return fs, nil
	}
	if _, err := r.ReadAt(b[:], 0); err != nil {
		return fs, fmt.Errorf("read superblock: %w", err)
	}
	switch {
	case string(b[:4]) == "XFSB":
		fs.kind, fs.uuid = "xfs", uuid(b[xfsUUID:])
		if binary.BigEndian.Uint64(b[xfsLog:]) == 0 {
			fs.kind = "XFS whose log is on another disk"
		}
	case string(b[:6]) == "LUKS\xba\xbe":
		fs.kind = "LUKS"
	case string(b[512:520]) == "LABELONE":
		fs.kind = "LVM"
	case binary.LittleEndian.Uint16(b[extMagic:]) == 0xef53:
		fs.kind, fs.uuid = "ext4", uuid(b[extUUID:])
		// A mount is recorded in the journal's recovery flag, or, without a journal, in the state (fs/ext4/super.c, ext4_setup_super).
		le := binary.LittleEndian
		journal := le.Uint32(b[extCompatible:])&extJournal != 0
		if le.Uint32(b[extIncompatible:])&extRecover != 0 || !journal && le.Uint16(b[extState:])&extValid == 0 {
			return fs, errUnclean
		}
	case part.Len() >= btrfsSuper+int64(len(b)):
		if _, err := r.ReadAt(b[:], btrfsSuper); err != nil {
			return fs, fmt.Errorf("read superblock: %w", err)
		}
		if string(b[btrfsMagic:][:8]) != "_BHRfS_M" {
			break
		}
		fs.kind, fs.uuid = "btrfs", uuid(b[btrfsUUID:])
		if binary.LittleEndian.Uint64(b[btrfsDevices:]) != 1 {
			fs.kind = "btrfs that has several disks"
			break
		}
		if binary.LittleEndian.Uint64(b[btrfsLog:]) != 0 {
			return fs, errUnclean
		}
	}
	return fs, nil
}

// uuid returns the UUID that b begins with, as fstab(5) has it.
func uuid(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
