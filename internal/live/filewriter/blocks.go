package filewriter

import (
	"fmt"
	"os"

	"understudy.dev/understudy/internal/live/wire"
)

// WriteBlocks writes the blocks of a request to a disk that is not mounted, and makes them
// durable.
func WriteBlocks(disk, staging *os.File, r wire.WriteRequest) error {
	blocks, err := readList(staging, r.Blocks, r.Len, wire.DecodeBlocks)
	if err != nil {
		return err
	}
	if err := copyBlocks(int(disk.Fd()), int(staging.Fd()), blocks); err != nil {
		return fmt.Errorf("write blocks to disk %s: %w", r.Disk, err)
	}
	if err := disk.Sync(); err != nil {
		return fmt.Errorf("sync disk %s: %w", r.Disk, err)
	}
	return nil
}

// copyBlocks copies blocks from the staging disk. It reads those that are close
// together there at once.
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
