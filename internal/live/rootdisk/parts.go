package rootdisk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/fence"
)

// Unclean hands each file system of the ext family on a disk that was not unmounted to do, as
// the path of an image or a block device that has it alone. The path of a partition is
// DISK.partN, a link that is there meanwhile; the disk is held, and the partition is not.
func Unclean(path string, do func(path string) error) error {
	claim, err := fence.Take(path)
	if err != nil {
		return err
	}
	parts, err := disk.Table(claim, claim.Size)
	if errors.Is(err, disk.ErrNoTable) {
		return errors.Join(claim.Close(), do(path))
	}
	for _, p := range parts {
		if _, err := probe(claim, p); !errors.Is(err, errUnclean) {
			continue
		}
		if err = alone(claim, p, fmt.Sprintf("%s.part%d", path, p.Number), do); err != nil {
			return errors.Join(fmt.Errorf("partition %d: %w", p.Number, err), claim.Close())
		}
	}
	return errors.Join(err, claim.Close())
}

// alone hands over a part of a disk under a name.
func alone(claim *fence.Claim, part disk.Partition, name string, do func(path string) error) error {
	loop, err := attach(claim.File, part)
	if err != nil {
		return err
	}
	defer loop.Close()                                                         // which detaches it
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a run that was killed
		return err
	}
	if err := os.Symlink(loop.Name(), name); err != nil {
		return err
	}
	return errors.Join(do(name), loop.Sync(), os.Remove(name))
}
