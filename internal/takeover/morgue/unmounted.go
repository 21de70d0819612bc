package morgue

import (
	"errors"
	"fmt"
	"io"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/pagecache"
	"understudy.dev/understudy/dead/salvage"
	"understudy.dev/understudy/internal/live/wire"
	"understudy.dev/understudy/internal/takeover"
)

// unmounted is what remains of a file system that the kernel had unmounted before it ended, as in
// a reboot or after umount(8): nothing.
type unmounted struct{ family string }

// wasUnmounted returns nil if a kernel had unmounted the file system on a disk, or had never mounted
// it: all of the kernel's superblocks are readable, none of them is that of the file system, and an
// ext file system itself says that it is clean. A superblock leaves the kernel's list only when all
// of it is on the disk (fs/super.c, deactivate_locked_super).
func wasUnmounted(c *pagecache.Cache, on *salvage.OnDisk, image takeover.Image) error {
	for s, err := range c.Superblocks() {
		if err != nil {
			return err
		}
		if s.Had(on.UUID) {
			return fmt.Errorf("it is mounted as %s", s.ID)
		}
	}
	return Clean(on, image)
}

// Clean returns nil if a file system on a disk says that it was unmounted. XFS and btrfs do not say it.
func Clean(on *salvage.OnDisk, disk io.ReaderAt) error {
	if on.Family != "ext" {
		return nil
	}
	fs, err := ext4.Open(disk)
	if err != nil {
		return err
	}
	if fs.Super.NeedsReplay() || fs.Super.State&ext4.StateValid == 0 {
		return errors.New("the superblock on the disk does not say cleanly unmounted")
	}
	return nil
}

func (u unmounted) Finish(takeover.Image) (takeover.Commit, error) {
	return takeover.Commit{Case: u.family + ": the kernel did not have it mounted any more"}, nil
}

func (unmounted) Size() int64 { return 0 }

func (unmounted) Gather([]byte) (takeover.Gathered, error) { return takeover.Gathered{}, nil }

func (unmounted) Names(*wire.Check) wire.NameRequest { return wire.NameRequest{} }

func (unmounted) Refusal(f wire.Failure) takeover.Refusal {
	return refusal(addr.Ino(f.Inode), "", f.Reason)
}
