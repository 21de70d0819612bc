package rootdisk

import (
	"errors"

	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/fence"
)

// Unclean returns the numbers of the partitions of an image or a block device that have a file system of
// the ext family that was not unmounted, or that are between two states according to inBetween. A disk without a
// partition table counts as one partition, 0, which is also returned if it has no file system of that family.
func Unclean(path string, inBetween func(device.Section) (bool, error)) (parts []int, err error) {
	claim, err := fence.Take(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, claim.Close()) }()
	table, err := disk.Table(claim, claim.Size)
	bare := errors.Is(err, disk.ErrNoTable)
	if bare {
		table, err = []disk.Partition{{Len: claim.Size}}, nil
	}
	for _, p := range table {
		fs, unclean := probe(claim, p)
		between, unread := inBetween(device.Section{Direct: device.Direct{File: claim.File}, Off: p.Off, Len: p.Len})
		if errors.Is(unclean, errUnclean) || between || bare && fs.kind != "ext4" {
			parts = append(parts, p.Number)
		}
		err = errors.Join(err, unread)
	}
	return parts, err
}
