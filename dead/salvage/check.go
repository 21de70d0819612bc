package salvage

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"understudy.dev/understudy/dead/pagecache"
)

// ErrDiskChanged is wrapped by a DiskError.
var ErrDiskChanged = errors.New("the disk is not as the dead kernel left it")

// DiskError says how a disk differs from what the dead kernel had mounted: it is
// another disk, or it was mounted or checked since.
type DiskError struct {
	Field        string // of the superblock
	Disk, Memory string
	Hint         string // what it means to the operator
}

func (e *DiskError) Error() string {
	return fmt.Sprintf("check disk: %s is %s, but %s in memory: %s", e.Field, e.Disk, e.Memory, e.Hint)
}

func (e *DiskError) Unwrap() error { return ErrDiskChanged }

// Check proves that a disk is as the dead kernel left it: that nobody mounted, checked,
// repaired or wrote to it since, that it is not another copy of that disk, and that the
// kernel did not go on after its memory was taken. Offset 0 of the disk must be the start
// of the file system; its size is compared if the disk has a Seek. An error that wraps
// ErrDiskChanged means that the plan must not be carried out. What a plan for XFS needs of the disk's content is then read.
//
// Changes that leave no trace in metadata are not detected: those of a kernel that went on,
// and overwrote blocks of files in place, within a commit interval of its death.
func (p *Plan) Check(disk io.ReaderAt) error {
	if err := p.checkSuper(disk); err != nil {
		return err
	}
	if err := p.checkSize(disk); err != nil {
		return err
	}
	p.fetch(disk)
	return nil
}

func (p *Plan) checkSuper(disk io.ReaderAt) error {
	switch p.Super.Type {
	case "xfs":
		return p.checkXFS(disk)
	case "btrfs":
		return p.checkBtrfs(disk)
	}
	if !p.Super.HasBuffers() {
		return fmt.Errorf("check disk: %s: %w: a disk of that type cannot be compared with memory", p.Super.Type, ErrUnsupported)
	}
	return p.checkExt(disk)
}

// checkSize compares the size of a disk with the size that the kernel had for it: a leg of a
// mirror is larger than the array, and the lower device of most other stacked devices is
// larger or smaller.
func (p *Plan) checkSize(disk io.ReaderAt) error {
	seeker, ok := disk.(io.Seeker)
	if !ok {
		return nil
	}
	size, err := seeker.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("check disk: find its size: %w", err)
	}
	device, err := p.cache.Device(&p.Super, nil)
	wanted := size
	switch {
	case err == nil:
		wanted = device.Size
	case !errors.Is(err, pagecache.ErrNoDevice):
		return fmt.Errorf("check disk: %w", err)
	}
	member := strings.HasPrefix(p.Super.ID, "md") && isMember(disk, size)
	if size == wanted && !member {
		return nil
	}
	hint := fmt.Sprintf("%s of the dead machine is not this device: it may be a part of it, or a part may be missing; make an image of just that device", p.Super.ID)
	if member {
		hint = fmt.Sprintf("this is a member of an md array, and %s of the dead machine was the array: assemble it read-only, and take an overlay over that", p.Super.ID)
	}
	return &DiskError{Field: "size", Disk: fmt.Sprint(size), Memory: fmt.Sprint(wanted), Hint: hint}
}

// isMember reports whether a disk has the superblock of an md array behind its data: of
// version 0.90 or 1.0 (include/uapi/linux/raid/md_p.h, MD_SB_MAGIC, MD_NEW_SIZE_SECTORS;
// drivers/md/md.c, super_1_load).
func isMember(disk io.ReaderAt, size int64) bool {
	const magic = 0xa92b4efc
	b := make([]byte, 4)
	for _, at := range []int64{size&^(64<<10-1) - 64<<10, (size/512 - 16) &^ 7 * 512} {
		if at < 0 {
			continue
		}
		if _, err := disk.ReadAt(b, at); err == nil && binary.LittleEndian.Uint32(b) == magic {
			return true
		}
	}
	return false
}

// Descends compares the disk of a file system that was mounted since the crash with
// memory: it must descend from what the dead kernel left. What was done to it since is
// not checked.
func (p *Plan) Descends(disk io.ReaderAt) error {
	switch p.Super.Type {
	case "xfs":
		return p.descendsXFS(disk)
	case "btrfs":
		return p.descendsBtrfs(disk)
	}
	return fmt.Errorf("check disk: %s: %w: once mounted after the crash, it cannot be compared with memory", p.Super.Type, ErrUnsupported)
}
