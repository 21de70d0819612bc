package rootdisk

import (
	"errors"

	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/fence"
)

// Unclean returns the partitions of an image or a block device whose file system, of the ext
// family, was not unmounted, by their numbers. A disk without a partition table has 0 alone,
// which is all of it, in whatever state it is.
func Unclean(path string) (parts []int, err error) {
	claim, err := fence.Take(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, claim.Close()) }()
	table, err := disk.Table(claim, claim.Size)
	if errors.Is(err, disk.ErrNoTable) {
		return []int{0}, nil
	}
	for _, p := range table {
		if _, err := probe(claim, p); errors.Is(err, errUnclean) {
			parts = append(parts, p.Number)
		}
	}
	return parts, err
}
