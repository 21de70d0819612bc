package rootdisk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"understudy.dev/understudy/internal/live/fence"
)

// Unclean hands each file system of the ext family on a disk that was not unmounted to do, as
// the path of an image or a block device that has it alone. The path of a partition is
// DISK.partN, a link that is there meanwhile; the disk is held, and the partition is not.
func Unclean(disk string, do func(path string) error) error {
	claim, err := fence.Take(disk)
	if err != nil {
		return err
	}
	parts, err := partitions(claim, claim.Size)
	if errors.Is(err, errNoTable) {
		return errors.Join(claim.Close(), do(disk))
	}
	for i, p := range parts {
		if _, err := probe(claim, p); !errors.Is(err, errUnclean) {
			continue
		}
		if err = alone(claim, p, fmt.Sprintf("%s.part%d", disk, i+1), do); err != nil {
			return errors.Join(fmt.Errorf("partition %d: %w", i+1, err), claim.Close())
		}
	}
	return errors.Join(err, claim.Close())
}

// alone hands over a part of a disk under a name.
func alone(claim *fence.Claim, part extent, name string, do func(path string) error) error {
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
