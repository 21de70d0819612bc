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

// write writes blocks to a disk that nobody has mounted, and makes them durable.
func (a *Agent) write(_ context.Context, r wire.WriteRequest) (none, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, err := a.disk(r.Disk); err != nil {
		return none{}, err
	}
	staging, err := openStaging()
	if err != nil {
		return none{}, err
	}
	defer staging.Close()
	path, err := diskPath(r.Disk)
	if err != nil {
		return none{}, err
	}
	// Exclusive: it fails while the disk is mounted (block/bdev.c).
	disk, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL|unix.O_DIRECT, 0)
	if err != nil {
		return none{}, fmt.Errorf("open disk %s: %w", r.Disk, err)
	}
	defer disk.Close()
	return none{}, filewriter.WriteBlocks(disk, staging, r)
}

// name undoes operations on names that were in flight.
func (a *Agent) name(_ context.Context, r wire.NameRequest) (wire.NameResult, error) {
	mount, _, err := a.openMount(r.Disk)
	if err != nil {
		return wire.NameResult{}, err
	}
	defer mount.Close()
	return filewriter.Undo(mount, r), nil
}

// apply brings the files of a plan to the state the dead kernel had in memory.
// A file that cannot be is reported and left as far as it came.
func (a *Agent) apply(_ context.Context, r wire.ApplyRequest) (wire.ApplyResult, error) {
	mount, kind, err := a.openMount(r.Disk)
	if err != nil {
		return wire.ApplyResult{}, err
	}
	defer mount.Close()
	staging, err := openStaging()
	if err != nil {
		return wire.ApplyResult{}, err
	}
	defer staging.Close()
	return filewriter.Apply(mount, kind, staging, r, time.Time{})
}

// openMount opens the top directory of a mounted disk, and gives the type of its file
// system.
func (a *Agent) openMount(disk string) (*os.File, string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	d, err := a.disk(disk)
	if err != nil {
		return nil, "", err
	}
	dir := a.mountPoint(disk)
	if dir == "" {
		return nil, "", fmt.Errorf("disk %q is not mounted here", disk)
	}
	mount, err := os.Open(dir)
	if err != nil {
		return nil, "", fmt.Errorf("open mount: %w", err)
	}
	return mount, d.Type, nil
}
