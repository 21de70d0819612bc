package salvage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"understudy.dev/understudy/dead/pagecache"
)

// Features are what must be known in advance about an XFS or btrfs file system for a takeover of it.
type Features struct {
	Family string // xfs or btrfs
	// Make are the mkfs options that make a file system with the same features. Without are the options
	// that turn off features it does not have: a newer mkfs may turn those on by default, and an older
	// one does not know the options.
	Make, Without []string
	// Lacks says what keeps it from being brought up to date, and what to do about that; empty if nothing does.
	Lacks string
}

// FeaturesOf reads the superblock of XFS or btrfs. It fails with ErrNoFileSystem if there is
// neither.
func FeaturesOf(disk io.ReaderAt) (Features, error) {
	b := make([]byte, btrfsSuperOffset+pagecache.BtrfsSuperSize)
	n, err := disk.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Features{}, fmt.Errorf("read superblock: %w", err)
	}
	b = b[:n]
	if len(b) >= xfsSuperSize && string(b[:4]) == "XFSB" {
		return xfsFeatures(b), nil
	}
	if len(b) == btrfsSuperOffset+pagecache.BtrfsSuperSize && string(b[btrfsSuperOffset+64:][:8]) == "_BHRfS_M" {
		return btrfsFeatures(b[btrfsSuperOffset:]), nil
	}
	return Features{}, ErrNoFileSystem
}

// feature is a bit of a superblock, and the option of mkfs that sets it.
type feature struct {
	bit          uint32
	option, name string
	since        bool // older mkfs do not know it
}

// Features of XFS (fs/xfs/libxfs/xfs_format.h, XFS_SB_FEAT_*), and how mkfs.xfs(8) names them.
var (
	xfsReadOnly = []feature{{1, "-m", "finobt", false}, {2, "-m", "rmapbt", false}, {4, "-m", "reflink", false}, {8, "-m", "inobtcount", false}}
	xfsIncompat = []feature{
		{2, "-i", "sparse", false}, {8, "-m", "bigtime", false}, {32, "-i", "nrext64", true}, {64, "-i", "exchange", true}, {128, "-n", "parent", true},
	}
)

const (
	xfsFtype, xfsMetaUUID, xfsNeedsRepair = 1, 4, 16

	xfsKnown = xfsFtype | 2 | xfsMetaUUID | 8 | 32 | 64 | 128 // the incompatible features that are known
)

// xfsFeatures reads the features from a struct xfs_dsb (fs/xfs/libxfs/xfs_format.h; most
// significant byte first).
func xfsFeatures(b []byte) Features {
	be := binary.BigEndian
	f := Features{Family: "xfs"}
	version, incompat := be.Uint16(b[100:])&15, be.Uint32(b[216:])
	_, err := parseXFSSuper(b)
	switch {
	case errors.Is(err, ErrUnsupported):
		f.Lacks = "has its log on another device, which cannot be handed over with it: make it again with the log inside"
	case err != nil:
		f.Lacks = fmt.Sprintf("has XFS that is damaged (%v): repair it first (xfs_repair)", err)
	case version != 5:
		f.Lacks = fmt.Sprintf("has XFS of version %d, without checksums: make it again (mkfs.xfs -m crc=1)", version)
	case b[126] != 0: // sb_inprogress
		f.Lacks = "has XFS that mkfs has not completed: make it again"
	case be.Uint64(b[16:]) != 0: // sb_rblocks
		f.Lacks = "has XFS with a realtime section, which is not understood: make it again without"
	case incompat&xfsNeedsRepair != 0:
		f.Lacks = "has XFS that is marked for repair, and cannot be mounted: xfs_repair"
	case incompat&^xfsKnown != 0:
		f.Lacks = fmt.Sprintf("has XFS with features that are not known (incompatible bits %#x): make it again without", incompat&^xfsKnown)
	}
	if f.Lacks != "" {
		return f
	}
	f.Make = []string{
		"-b", fmt.Sprintf("size=%d", be.Uint32(b[4:])), "-s", fmt.Sprintf("size=%d", be.Uint16(b[102:])),
		"-i", fmt.Sprintf("size=%d", be.Uint16(b[104:])), "-n", fmt.Sprintf("size=%d", be.Uint32(b[4:])<<b[192]), "-m", "crc=1",
	}
	f.haveXFS(xfsReadOnly, be.Uint32(b[212:]))
	f.haveXFS(xfsIncompat, incompat)
	return f
}

// haveXFS adds the options for features; set has the bits of those that are turned on.
func (f *Features) haveXFS(features []feature, set uint32) {
	for _, x := range features {
		switch {
		case set&x.bit != 0:
			f.Make = append(f.Make, x.option, x.name+"=1")
		case x.since:
			f.Without = append(f.Without, x.option+x.name+"=0")
		default:
			f.Make = append(f.Make, x.option, x.name+"=0")
		}
	}
}

// Incompatible features of btrfs (include/uapi/linux/btrfs.h, BTRFS_FEATURE_INCOMPAT_*), and the
// flag of a seed device (include/uapi/linux/btrfs_tree.h, BTRFS_SUPER_FLAG_SEEDING).
const (
	btrfsKnown = 0x1<<12 - 1 | 0x10000 // all before ZONED, and SIMPLE_QUOTA
	btrfsMixed = 1 << 2
	btrfsSeed  = 1 << 32

	btrfsGroupTree = 1 << 3 // compatible for read-only mounts (BTRFS_FEATURE_COMPAT_RO_BLOCK_GROUP_TREE)
)

// btrfsSums has the names of the checksums by their numbers, as in mkfs.btrfs(8).
var btrfsSums = [...]string{"crc32c", "xxhash", "sha256", "blake2"}

// btrfsFeatures reads the features from a struct btrfs_super_block
// (include/uapi/linux/btrfs_tree.h; least significant byte first).
func btrfsFeatures(b []byte) Features {
	le := binary.LittleEndian
	f := Features{Family: "btrfs"}
	incompat, sum := le.Uint64(b[188:]), le.Uint16(b[196:])
	switch {
	case le.Uint64(b[136:]) != 1:
		f.Lacks = fmt.Sprintf("has btrfs on %d devices, and only one can be handed over: take a mirror of md below it, or remove devices (btrfs device remove)", le.Uint64(b[136:]))
	case le.Uint64(b[56:])&btrfsSeed != 0:
		f.Lacks = "has a seed of btrfs, which cannot be written to: btrfstune -S 0"
	case incompat&^btrfsKnown != 0:
		f.Lacks = fmt.Sprintf("has btrfs with features that are not understood (incompatible bits %#x): make it again without", incompat&^btrfsKnown)
	case int(sum) >= len(btrfsSums):
		f.Lacks = fmt.Sprintf("has btrfs with a checksum that is not known (%d): make it again", sum)
	}
	if f.Lacks != "" {
		return f
	}
	f.Make = []string{"-s", fmt.Sprint(le.Uint32(b[144:])), "-n", fmt.Sprint(le.Uint32(b[148:])), "--csum", btrfsSums[sum]}
	if incompat&btrfsMixed != 0 {
		f.Make = append(f.Make, "-M")
	}
	if le.Uint64(b[180:])&btrfsGroupTree != 0 {
		f.Make = append(f.Make, "-O", "block-group-tree")
	} else { // Linux before 6.1 does not mount it, and mkfs turns it on by default since 6.19
		f.Without = []string{"-O^block-group-tree"}
	}
	return f
}
