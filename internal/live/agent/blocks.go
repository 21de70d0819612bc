package agent

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"understudy.dev/understudy/internal/live/wire"
)

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
	blocks, err := readList(staging, r.Blocks, r.Len, wire.DecodeBlocks)
	if err != nil {
		return none{}, err
	}
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
	if err := copyBlocks(int(disk.Fd()), int(staging.Fd()), blocks); err != nil {
		return none{}, fmt.Errorf("write blocks to disk %s: %w", r.Disk, err)
	}
	if err := disk.Sync(); err != nil {
		return none{}, fmt.Errorf("sync disk %s: %w", r.Disk, err)
	}
	return none{}, nil
}

// copyBlocks copies blocks from the staging disk, those that stand together on
// it with one read.
func copyBlocks(disk, staging int, blocks []wire.Run) error {
	var pieces []piece
	for _, b := range blocks {
		for done := int64(0); done < b.Len; done += chunk {
			pieces = append(pieces, piece{off: b.Off + done, len: min(b.Len-done, chunk), staged: b.Staged + done})
		}
	}
	bufs, free, err := buffers(1)
	if err != nil {
		return err
	}
	defer free()
	for _, b := range gather(pieces) {
		data := bufs[0][:b.end-b.start]
		if err := readFull(staging, data, b.start); err != nil {
			return fmt.Errorf("read staging disk: %w", err)
		}
		for _, p := range b.pieces {
			if err := writeFull(disk, data[p.staged-b.start:][:p.len], p.off); err != nil {
				return fmt.Errorf("write %d bytes at %d: %w", p.len, p.off, err)
			}
		}
	}
	return nil
}
