package wire

import (
	"encoding/json"
	"fmt"
)

// Attr is the metadata of a file of a plan, on file systems whose log we do not finish:
// others than the ext family.
type Attr struct {
	File      int    `json:"file"`                // its index in the plan
	Root      uint64 `json:"root,omitempty"`      // the subvolume of btrfs that it is in
	Committed bool   `json:"committed,omitempty"` // the disk has the metadata: only data is to be written

	Paths [][]byte `json:"paths,omitempty"` // from the top of the file system, without a leading slash
	Links uint32   `json:"links,omitempty"` // how many names it has; 0: it was deleted
	// Former are paths that it had until it was deleted, while it was open.
	Former [][]byte `json:"former,omitempty"`
	Mode   uint32   `json:"mode,omitempty"` // type and permissions
	UID    uint32   `json:"uid,omitempty"`
	GID    uint32   `json:"gid,omitempty"`
	// Settings are what chattr(1) and xfs_io(8) set.
	Settings Settings `json:"settings,omitzero"`
	Ctime    Time     `json:"ctime,omitzero"` // of a directory, which was created no later, and if XattrsLack is not empty
	// Absent are names in a directory that nothing had: what the disk has under them was removed, or renamed.
	Absent [][]byte `json:"absent,omitempty"`

	Target []byte `json:"target,omitempty"` // of a symbolic link
	Device uint64 `json:"device,omitempty"` // of a device file, as mknod(2) has it

	Xattrs     []Xattr `json:"xattrs,omitempty"`     // extended attributes
	XattrsAll  bool    `json:"xattrsAll,omitempty"`  // it had no others
	XattrsLack string  `json:"xattrsLack,omitempty"` // why they are not known, as a sentence: those on the disk may be older
	ACL        bool    `json:"acl,omitempty"`        // they may have an ACL among them

	Zeros []Range `json:"zeros,omitempty"` // the parts of the content that were holes
	// Mapped are the extents of the content that is neither in runs nor zero. The file
	// must have them on the disk too.
	Mapped []Extent `json:"mapped,omitempty"`
	// Kept says that the disk has the content that is in none of these.
	Kept bool `json:"kept,omitempty"`
	// Partial lets the file be created again even if its extents, or content that the disk should have kept, are missing.
	Partial bool `json:"partial,omitempty"`
}

// Settings are inode flags, and what XFS has beside them.
type Settings struct {
	Flags         uint32 `json:"flags,omitempty"`         // FS_XFLAG_* (include/uapi/linux/fs.h)
	Known         uint32 `json:"known,omitempty"`         // those of which memory tells whether they are set
	Btrfs         uint32 `json:"btrfs,omitempty"`         // FS_NOCOW_FL and FS_DIRSYNC_FL, which have no such flag
	BtrfsKnown    uint32 `json:"btrfsKnown,omitempty"`    // likewise
	Project       uint32 `json:"project,omitempty"`       // of XFS: known with FS_XFLAG_PROJINHERIT
	ExtentSize    uint32 `json:"extentSize,omitempty"`    // in bytes: known with FS_XFLAG_EXTSIZE
	CowExtentSize uint32 `json:"cowExtentSize,omitempty"` // likewise
}

// Xattr is an extended attribute (xattr(7)).
type Xattr struct {
	Name  []byte `json:"name"` // with its namespace
	Value []byte `json:"value,omitempty"`
}

// Range is a part of a file, in bytes.
type Range struct {
	Off int64 `json:"off"`
	Len int64 `json:"len"`
}

// Extent is a range of a file and where it lies on the disk, in bytes.
type Extent struct {
	Range
	Disk int64 `json:"disk"`
}

// Act is something that was done, or seen, other than writing to an existing file in place.
type Act struct {
	Kind       string `json:"kind"` // Act*
	Inode      uint64 `json:"inode"`
	Generation uint32 `json:"generation"`
	Path       []byte `json:"path"`
	Other      []byte `json:"other,omitempty"` // a second path
}

// The kinds of acts.
const (
	ActCreated   = "created"   // it was not on the disk
	ActLinked    = "linked"    // a name was not on the disk
	ActRenamed   = "renamed"   // a directory was at Other
	ActUnlinked  = "unlinked"  // a name from before was removed
	ActDisplaced = "displaced" // what was at the path is at Other
	ActRemoved   = "removed"   // the path was a name of nothing any more: what the disk has there is at Other
	ActDeleted   = "deleted"   // it had been deleted while it was open, and the disk still had it
	ActBack      = "is back"   // it had been deleted: the disk still has it
	ActUndone    = "undone"    // it was being created, or given the name, by an operation in flight
	ActFinished  = "finished"  // it was being removed, or losing the name, by an operation in flight
	ActGone      = "gone"      // it was being removed or created, likewise, and a check cleared it
)

// EncodeAttrs lays out attributes as the agent reads them from the staging disk.
func EncodeAttrs(attrs []Attr) ([]byte, error) { return json.Marshal(attrs) }

// DecodeAttrs reads what EncodeAttrs wrote. That each File is an index of the plan is for the
// caller to check.
func DecodeAttrs(b []byte) ([]Attr, error) {
	var attrs []Attr
	if err := json.Unmarshal(b, &attrs); err != nil {
		return nil, fmt.Errorf("%w: attributes: %w", ErrPlan, err)
	}
	for _, a := range attrs {
		for _, z := range a.Zeros {
			if err := z.check(); err != nil {
				return nil, fmt.Errorf("%w: file %d: %w", ErrPlan, a.File, err)
			}
		}
		for _, p := range a.Mapped {
			if err := p.check(); err != nil || p.Disk < 0 {
				return nil, fmt.Errorf("%w: file %d: extent %+v", ErrPlan, a.File, p)
			}
		}
	}
	return attrs, nil
}

func (r Range) check() error {
	if r.Off < 0 || r.Len <= 0 || r.Off+r.Len < r.Off {
		return fmt.Errorf("range %+v", r)
	}
	return nil
}
