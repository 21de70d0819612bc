package rootdisk

import (
	"errors"

	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/fence"
)

// Unclean returns the parts of an image or a block device that have a file system that was not unmounted, or, of XFS and btrfs,
// of which that is not known from the superblock, or that are between two states according to inBetween. A disk without a
// partition table is also returned if it has neither a file system that we know nor logical volumes.
func Unclean(path string, inBetween func(device.Section) (bool, error)) (parts []disk.Where, err error) {
	claim, err := fence.Take(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, claim.Close()) }()
	areas, _, err := disk.Areas(claim, claim.Size)
	for _, a := range areas {
		on := device.On(claim.File, a)
		fs, unclean := probe(on, a)
		between, unread := inBetween(on)
		if errors.Is(unclean, errUnclean) || between || fs.mountable() && fs.kind != "ext4" || a.Whole() && len(areas) == 1 && !fs.mountable() {
			parts = append(parts, a.Where)
		}
		err = errors.Join(err, unread)
	}
	return parts, err
}
