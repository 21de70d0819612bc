package journal

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/jbd2"
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
	if err := f.writeAll(data); err != nil {
		return err
	}
	if err := f.disk.Sync(); err != nil {
		return fmt.Errorf("sync blocks: %w", err)
	}
	f.report.Written = written
	return nil
}

// writeAll writes blocks, which ascend on the disk: straight from memory, if the disk takes
// that.
func (f *finisher) writeAll(data []block) error {
	straight, ok := f.disk.(jbd2.StretchDisk)
	var all []stretch
	buf := make([]byte, 0, chunk)
	for len(data) > 0 {
		s, n, err := f.stretch(data)
		if err != nil {
			return err
		}
		data = data[n:]
		if ok {
			all = append(all, s)
			continue
		}
		buf = buf[:0]
		for _, piece := range s.data {
			buf = append(buf, piece...)
		}
		if _, err := f.disk.WriteAt(buf, s.off); err != nil {
			return fmt.Errorf("write blocks: %w", err)
		}
	}
	if !ok {
		return nil
	}
	if err := straight.WriteStretches(len(all), func(i int) (int64, [][]byte) { return all[i].off, all[i].data }); err != nil {
		return fmt.Errorf("write blocks: %w", err)
	}
	return nil
}

// stretch are pieces of memory that go to one place of the disk, one after the other.
type stretch struct {
	off  int64 // of the disk
	data [][]byte
}

// stretch returns the first of some blocks that lie together on the disk, and how many they
// are.
func (f *finisher) stretch(data []block) (s stretch, n int, err error) {
	s.off = data[0].disk
	size := int64(0)
	for ; n < len(data); n++ {
		b := data[n]
		if b.disk != s.off+size || n > 0 && size+b.len > chunk {
			break
		}
		view, err := f.mem.View(b.phys, int(b.used))
		if err != nil {
			return s, n, fmt.Errorf("read memory: %w", err)
		}
		if b.used < b.len {
			padded := make([]byte, b.len)
			copy(padded, view)
			view = padded
		}
		s.data = append(s.data, view)
		size += b.len
	}
	f.report.Data += size
	return s, n, nil
}
