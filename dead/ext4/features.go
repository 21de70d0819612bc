package ext4

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
)

// State is s_state.
type State uint16

// The bits of a State (fs/ext4/ext4.h).
const (
	StateValid State = 1 // unmounted cleanly
	StateError State = 2 // errors were seen
)

// Compat, Incompat and ROCompat are sets of features. A kernel that does not know an
// Incompat feature must not touch the file system; one that does not know an ROCompat
// feature must not write to it.
type (
	Compat   uint32
	Incompat uint32
	ROCompat uint32
)

// Features (fs/ext4/ext4.h, EXT4_FEATURE_COMPAT_*).
const (
	CompatHasJournal   Compat = 0x4
	CompatExtAttr      Compat = 0x8
	CompatDirIndex     Compat = 0x20
	CompatSparseSuper2 Compat = 0x200
	CompatFastCommit   Compat = 0x400
	CompatOrphanFile   Compat = 0x1000
)

// Features (EXT4_FEATURE_INCOMPAT_*).
const (
	IncompatFiletype   Incompat = 0x2
	IncompatRecover    Incompat = 0x4 // the journal is in use
	IncompatJournalDev Incompat = 0x8 // an external journal, not a file system
	IncompatMetaBG     Incompat = 0x10
	IncompatExtents    Incompat = 0x40
	Incompat64Bit      Incompat = 0x80
	IncompatMMP        Incompat = 0x100
	IncompatFlexBG     Incompat = 0x200
	IncompatEAInode    Incompat = 0x400
	IncompatCsumSeed   Incompat = 0x2000
	IncompatLargeDir   Incompat = 0x4000
	IncompatInlineData Incompat = 0x8000
	IncompatEncrypt    Incompat = 0x10000
	IncompatCasefold   Incompat = 0x20000
)

// Features (EXT4_FEATURE_RO_COMPAT_*).
const (
	ROCompatSparseSuper   ROCompat = 0x1
	ROCompatLargeFile     ROCompat = 0x2
	ROCompatHugeFile      ROCompat = 0x8
	ROCompatGDTCsum       ROCompat = 0x10
	ROCompatDirNlink      ROCompat = 0x20
	ROCompatExtraIsize    ROCompat = 0x40
	ROCompatQuota         ROCompat = 0x100
	ROCompatBigalloc      ROCompat = 0x200
	ROCompatMetadataCsum  ROCompat = 0x400
	ROCompatReadonly      ROCompat = 0x1000
	ROCompatProject       ROCompat = 0x2000
	ROCompatVerity        ROCompat = 0x8000
	ROCompatOrphanPresent ROCompat = 0x10000 // the orphan file may have orphans
)

// known are the incompatible features whose effect on what this package reads
// is known.
const known = IncompatFiletype | IncompatRecover | IncompatMetaBG | IncompatExtents | Incompat64Bit | IncompatMMP |
	IncompatFlexBG | IncompatEAInode | IncompatCsumSeed | IncompatLargeDir | IncompatInlineData | IncompatEncrypt | IncompatCasefold

// names are the names that mke2fs gives to incompatible features (ext4(5)).
var names = map[Incompat]string{
	0x1: "compression", IncompatFiletype: "filetype", IncompatRecover: "needs_recovery", IncompatJournalDev: "journal_dev",
	IncompatMetaBG: "meta_bg", IncompatExtents: "extent", Incompat64Bit: "64bit", IncompatMMP: "mmp", IncompatFlexBG: "flex_bg",
	IncompatEAInode: "ea_inode", 0x1000: "dirdata", IncompatCsumSeed: "metadata_csum_seed", IncompatLargeDir: "large_dir",
	IncompatInlineData: "inline_data", IncompatEncrypt: "encrypt", IncompatCasefold: "casefold",
}

// compatNames and roCompatNames are those of the other features. A feature that mke2fs
// cannot set, since it is a state or obsolete, has no name here.
var (
	compatNames = map[Compat]string{
		CompatHasJournal: "has_journal", CompatExtAttr: "ext_attr", 0x10: "resize_inode", CompatDirIndex: "dir_index",
		CompatSparseSuper2: "sparse_super2", CompatFastCommit: "fast_commit", 0x800: "stable_inodes", CompatOrphanFile: "orphan_file",
	}
	roCompatNames = map[ROCompat]string{
		ROCompatSparseSuper: "sparse_super", ROCompatLargeFile: "large_file", ROCompatHugeFile: "huge_file", ROCompatGDTCsum: "uninit_bg",
		ROCompatDirNlink: "dir_nlink", ROCompatExtraIsize: "extra_isize", ROCompatQuota: "quota", ROCompatBigalloc: "bigalloc",
		ROCompatMetadataCsum: "metadata_csum", ROCompatProject: "project", ROCompatVerity: "verity",
	}
)

// MakeOptions are the options with which mke2fs(8) makes a file system with the same
// features, and the same sizes of blocks, clusters and inodes.
func (s *Super) MakeOptions() []string {
	features := slices.Concat([]string{"none"}, namesOf(s.Compat, compatNames), namesOf(s.Incompat&^IncompatRecover, names), namesOf(s.ROCompat, roCompatNames))
	options := []string{"-b", fmt.Sprint(s.BlockSize), "-I", fmt.Sprint(s.InodeSize), "-O", strings.Join(features, ",")}
	if s.ROCompat&ROCompatBigalloc != 0 {
		options = append(options, "-C", fmt.Sprint(s.ClusterSize))
	}
	return options
}

// namesOf returns the names of those features that have one, lowest bit first.
func namesOf[F Compat | Incompat | ROCompat](f F, names map[F]string) (list []string) {
	for ; f != 0; f &= f - 1 {
		if name, ok := names[f&-f]; ok {
			list = append(list, name)
		}
	}
	return list
}

// FeatureError says that a file system has incompatible features that are not
// known.
type FeatureError struct{ Features Incompat }

func (e *FeatureError) Error() string {
	return "unknown features: " + e.Features.String()
}

func (f Incompat) String() string {
	var list []string
	for ; f != 0; f &= f - 1 {
		bit := Incompat(1) << bits.TrailingZeros32(uint32(f))
		if name, ok := names[bit]; ok {
			list = append(list, name)
		} else {
			list = append(list, fmt.Sprintf("%#x", uint32(bit)))
		}
	}
	return strings.Join(list, ",")
}
