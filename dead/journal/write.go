package journal

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"understudy.dev/understudy/dead/addr"
)

// chunk is how much is written at once, in bytes.
const chunk = 1 << 20

// write writes the allocated blocks of files to the disk and makes them durable, but for
// those that a replay writes: their newest version, if there is one beside that in
// the log, goes through the file system.
func (f *finisher) write(except map[addr.Block]struct{}) error {
	size := int64(f.super.BlockSize)
	written := maps.Clone(f.whole)
	data := slices.DeleteFunc(slices.Clone(f.data), func(b block) bool {
		_, there := except[addr.Block(b.disk/size)]
		if there {
			delete(written, b.ino)
		}
		return there
	})
	if len(data) == 0 {
		f.report.Written = written
		return nil
	}
	slices.SortFunc(data, func(a, b block) int { return cmp.Compare(a.disk, b.disk) })
	for i := 1; i < len(data); i++ {
		if data[i].disk < data[i-1].disk+data[i-1].len {
			return fmt.Errorf("%w: two files have unsaved data for byte %d of the disk", ErrDamaged, data[i].disk)
		}
	}
	buf := make([]byte, 0, chunk)
	for len(data) > 0 {
		start := data[0].disk
		for buf = buf[:0]; len(data) > 0; data = data[1:] {
			b := data[0]
			if b.disk != start+int64(len(buf)) || len(buf) > 0 && len(buf)+int(b.len) > chunk {
				break
			}
			view, err := f.mem.View(b.phys, int(b.used))
			if err != nil {
				return fmt.Errorf("read memory: %w", err)
			}
			buf = append(buf, view...)
			buf = append(buf, make([]byte, b.len-b.used)...)
		}
		if _, err := f.disk.WriteAt(buf, start); err != nil {
			return fmt.Errorf("write blocks: %w", err)
		}
		f.report.Data += int64(len(buf))
	}
	if err := f.disk.Sync(); err != nil {
		return fmt.Errorf("sync blocks: %w", err)
	}
	f.report.Written = written
	return nil
}
