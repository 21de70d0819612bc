package rootdisk

import (
	"errors"

	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/fence"
)

// Unclean returns the partitions of an image or a block device whose file system, of the ext
// family, was not unmounted, or that are between two states, as inBetween says, by their numbers. A disk
// without a partition table has 0 alone, which is all of it, unless a file system of that family there was unmounted.
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
