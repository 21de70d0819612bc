package salvage

import (
	"errors"
	"fmt"
	"io"

	"understudy.dev/understudy/dead/ext4"
)

// ErrDiskChanged is wrapped by a DiskError.
var ErrDiskChanged = errors.New("the disk is not as the dead kernel left it")

// DiskError says how a disk differs from what the dead kernel had mounted: it is
// another one, or somebody mounted or checked it since.
type DiskError struct {
	Field        string // of the superblock
	Disk, Memory string
	Hint         string // what it means to the operator
}

func (e *DiskError) Error() string {
	return fmt.Sprintf("check disk: %s is %s, but %s in memory: %s", e.Field, e.Disk, e.Memory, e.Hint)
}

func (e *DiskError) Unwrap() error { return ErrDiskChanged }

// Check compares the superblock on a disk with the one in the dead kernel's
// memory. Offset 0 of the disk must be the start of the file system. An error
// that wraps ErrDiskChanged means that the plan must not be carried out.
func (p *Plan) Check(disk io.ReaderAt) error {
	switch p.Super.Type {
	case "xfs":
		return p.checkXFS(disk)
	case "btrfs":
		return p.checkBtrfs(disk)
	}
	if !p.Super.HasBuffers() {
		return fmt.Errorf("check disk: %s: %w: a disk of that type cannot be compared with memory", p.Super.Type, ErrUnsupported)
	}
	b := make([]byte, ext4.SuperSize)
	if _, err := disk.ReadAt(b, ext4.SuperOffset); err != nil {
		return fmt.Errorf("check disk: read superblock: %w", err)
	}
	on, err := ext4.ParseSuper(b)
	if errors.Is(err, ext4.ErrNotExt) {
		return &DiskError{Field: "superblock", Disk: "missing", Memory: "present", Hint: "this is another disk, or its file system was overwritten"}
	}
	if err != nil {
		return fmt.Errorf("check disk: %w", err)
	}
	in := p.Ext4.Super
	for _, f := range []struct {
		name, hint   string
		disk, memory any
	}{
		{"uuid", "this is another disk", on.UUID, in.UUID},
		{"mount count", "the file system was mounted or checked since the crash", on.MountCount, in.MountCount},
		{"mount time", "the file system was mounted since the crash", on.MountTime, in.MountTime},
	} {
		if f.disk != f.memory {
			return &DiskError{Field: f.name, Disk: fmt.Sprint(f.disk), Memory: fmt.Sprint(f.memory), Hint: f.hint}
		}
	}
	return nil
}

// Descends compares the disk of a file system that was mounted since the crash with
// memory: it must have come from what the dead kernel left. Of what was done to it
// since it says nothing.
func (p *Plan) Descends(disk io.ReaderAt) error {
	switch p.Super.Type {
	case "xfs":
		return p.descendsXFS(disk)
	case "btrfs":
		return p.descendsBtrfs(disk)
	}
	return fmt.Errorf("check disk: %s: %w: what was mounted since the crash cannot be told from memory", p.Super.Type, ErrUnsupported)
}
