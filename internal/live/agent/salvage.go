package agent

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/filewriter"
	"understudy.dev/understudy/internal/live/wire"
)

func openStaging() (*os.File, error) {
	path, err := diskPath(wire.StagingDisk)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, fmt.Errorf("open staging disk: %w", err)
	}
	return f, nil
}

// write writes blocks to a disk that is not mounted, and makes them durable.
func (a *Agent) write(ctx context.Context, r wire.WriteRequest) (none, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	d, err := a.disk(r.Disk)
	if err != nil {
		return none{}, err
	}
	if err := a.prepareDevice(ctx, d); err != nil {
		return none{}, err
	}
	staging, err := openStaging()
	if err != nil {
		return none{}, err
	}
	defer staging.Close()
	path, err := devicePath(d)
	if err != nil {
		return none{}, err
	}
	// O_EXCL fails while the disk is mounted (block/bdev.c).
	disk, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL|unix.O_DIRECT, 0)
	if err != nil {
		return none{}, fmt.Errorf("open disk %s: %w", r.Disk, err)
	}
	defer disk.Close()
	return none{}, filewriter.WriteBlocks(disk, staging, r)
}

// name undoes operations on names that were in flight.
func (a *Agent) name(_ context.Context, r wire.NameRequest) (wire.NameResult, error) {
	mount, _, done, err := a.OpenMount(r.Disk)
	if err != nil {
		return wire.NameResult{}, err
	}
	defer done()
	result := filewriter.Undo(mount, r)
	result.Fit()
	return result, nil
}

// apply brings the files of a plan to the state the dead kernel had in memory.
// A file for which that fails is reported, and keeps what was done up to then.
func (a *Agent) apply(_ context.Context, r wire.ApplyRequest) (wire.ApplyResult, error) {
	mount, kind, done, err := a.OpenMount(r.Disk)
	if err != nil {
		return wire.ApplyResult{}, err
	}
	defer done()
	staging, err := openStaging()
	if err != nil {
		return wire.ApplyResult{}, err
	}
	defer staging.Close()
	result, err := filewriter.Apply(mount, kind, staging, r, time.Time{})
	result.Fit()
	return result, err
}

// OpenMount opens the top directory of a mounted disk. It returns that, the type of the
// file system, and the function that closes it again.
func (a *Agent) OpenMount(disk string) (*os.File, string, func(), error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	d, err := a.disk(disk)
	if err != nil {
		return nil, "", nil, err
	}
	dir := a.mountPoint(disk)
	if dir == "" {
		return nil, "", nil, fmt.Errorf("disk %q is not mounted here", disk)
	}
	unmount := func() {}
	if d.Type == "btrfs" {
		if dir, unmount, err = mountTop(d); err != nil {
			return nil, "", nil, err
		}
	}
	mount, err := os.Open(dir)
	if err != nil {
		unmount()
		return nil, "", nil, fmt.Errorf("open mount: %w", err)
	}
	return mount, d.Type, func() { mount.Close(); unmount() }, nil
}

// topSubvolume is the option that mounts btrfs from its top, where the paths of a plan begin,
// whatever subvolume the disk is mounted with (btrfs(5)).
const topSubvolume = "subvolid=5"

// mountTop mounts a disk with btrfs once more, from its top.
func mountTop(d wire.Disk) (dir string, done func(), err error) {
	path, err := devicePath(d)
	if err != nil {
		return "", nil, err
	}
	if dir, err = os.MkdirTemp("", "top-"); err != nil {
		return "", nil, fmt.Errorf("make mount point: %w", err)
	}
	if err := unix.Mount(path, dir, d.Type, unix.MS_NOATIME, topSubvolume); err != nil {
		_ = os.Remove(dir) // it is empty
		return "", nil, fmt.Errorf("mount the top-level subvolume of disk %s: %w", d.Name, err)
	}
	return dir, func() {
		_ = unix.Unmount(dir, unix.MNT_DETACH) // the mount ends with its last user, which is gone
		_ = os.Remove(dir)
	}, nil
}
