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
	kind string // ext4 for all of that family
	uuid string
}

// Offsets in superblocks, in bytes, and flags.
const (
	extSuper        = 1024 // fs/ext4/ext4.h, struct ext4_super_block
	extMagic        = extSuper + 0x38
	extState        = extSuper + 0x3a
	extCompatible   = extSuper + 0x5c
	extIncompatible = extSuper + 0x60
	extUUID         = extSuper + 0x68
	extValid        = 0x1        // EXT4_VALID_FS
	extJournal      = 0x4        // EXT4_FEATURE_COMPAT_HAS_JOURNAL
	extRecover      = 0x4        // EXT4_FEATURE_INCOMPAT_RECOVER
	btrfsMagic      = 65536 + 64 // include/uapi/linux/btrfs_tree.h, struct btrfs_super_block
)

// errUnclean is why a file system is left as it is.
var errUnclean = errors.New("its file system was not unmounted")

// probe returns the file system on a part of a disk, which r reads. For a family other than ext, its kind is
// only shown to people.
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
		fs.kind = "xfs"
	case string(b[:6]) == "LUKS\xba\xbe":
		fs.kind = "LUKS"
	case string(b[512:520]) == "LABELONE":
		fs.kind = "LVM"
	case binary.LittleEndian.Uint16(b[extMagic:]) == 0xef53:
		fs.kind = "ext4"
		u := b[extUUID:][:16]
		fs.uuid = fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
		// A mount is recorded in the journal's recovery flag, or, without a journal, in the state (fs/ext4/super.c, ext4_setup_super).
		le := binary.LittleEndian
		journal := le.Uint32(b[extCompatible:])&extJournal != 0
		if le.Uint32(b[extIncompatible:])&extRecover != 0 || !journal && le.Uint16(b[extState:])&extValid == 0 {
			return fs, errUnclean
		}
	case part.Len() >= btrfsMagic+8:
		if _, err := r.ReadAt(b[:8], btrfsMagic); err != nil {
			return fs, fmt.Errorf("read superblock: %w", err)
		}
		if string(b[:8]) == "_BHRfS_M" {
			fs.kind = "btrfs"
		}
	}
	return fs, nil
}
