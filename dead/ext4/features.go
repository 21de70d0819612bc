package ext4

import (
	"fmt"
	"math/bits"
	"strings"
)

// State is s_state.
type State uint16

// The bits of a State (fs/ext4/ext4.h).
const (
	StateValid State = 1 // unmounted cleanly
	StateError State = 2 // errors were seen
)

// Compat, Incompat and ROCompat are features: a kernel that does not know one of
// Incompat must not touch the file system; one of ROCompat, not write to it.
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
	IncompatJournalDev Incompat = 0x8 // this is not a file system, but its journal
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

// known are the incompatible features whose effect on what is read here is
// known.
const known = IncompatFiletype | IncompatRecover | IncompatMetaBG | IncompatExtents | Incompat64Bit | IncompatMMP |
	IncompatFlexBG | IncompatEAInode | IncompatCsumSeed | IncompatLargeDir | IncompatInlineData | IncompatEncrypt | IncompatCasefold

// names are what mke2fs calls them (ext4(5)).
var names = map[Incompat]string{
	0x1: "compression", IncompatFiletype: "filetype", IncompatRecover: "needs_recovery", IncompatJournalDev: "journal_dev",
	IncompatMetaBG: "meta_bg", IncompatExtents: "extent", Incompat64Bit: "64bit", IncompatMMP: "mmp", IncompatFlexBG: "flex_bg",
	IncompatEAInode: "ea_inode", 0x1000: "dirdata", IncompatCsumSeed: "metadata_csum_seed", IncompatLargeDir: "large_dir",
	IncompatInlineData: "inline_data", IncompatEncrypt: "encrypt", IncompatCasefold: "casefold",
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
