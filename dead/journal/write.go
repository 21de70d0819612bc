package journal

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"

	"understudy.dev/understudy/dead/addr"
	"understudy.dev/understudy/dead/ext4"
	"understudy.dev/understudy/dead/jbd2"
)

// chunk is how much is written at once, in bytes.
const chunk = 1 << 20

// write writes the allocated blocks of files to the disk and makes them durable, except for
// those that a replay writes: their newest version, if there is one besides that in
// the log, goes through the file system.
func (f *finisher) write(except map[addr.Block]struct{}) error {
	size := int64(f.super.BlockSize)
	written := make(map[addr.Ino]struct{})
	for ino := range f.whole {
		if _, other := f.resized[ino]; !other {
			written[ino] = struct{}{}
		}
	}
	data := slices.DeleteFunc(slices.Concat(f.data, f.fills), func(b block) bool {
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

// compareSizes finds files whose inode will not be on the disk as it is in memory: their writer
// had not got that far. They are left to be written after the mount.
func (f *finisher) compareSizes(t *jbd2.Transaction) error {
	f.resized = make(map[addr.Ino]struct{})
	for _, s := range f.torn { // being written, or damaged: nobody can tell
		f.resized[s.Ino] = struct{}{}
	}
	if len(f.whole) == 0 {
		return nil
	}
	if t == nil {
		t = &jbd2.Transaction{}
	}
	c, err := f.change(t)
	if err != nil {
		return err
	}
	with, err := c.after()
	if err != nil {
		return err
	}
	disk := &watched{ReaderAt: with, seen: make(map[int64][]byte)}
	fs, err := ext4.Open(disk)
	if err != nil {
		return err
	}
	for _, ino := range slices.Sorted(maps.Keys(f.whole)) {
		in := f.whole[ino]
		i, err := fs.Inode(ino)
		if disk.err != nil {
			return fmt.Errorf("read inode %d: %w", ino, disk.err)
		}
		if err != nil || int64(i.Size) != in.Size || i.Generation != in.Generation || i.IsRegular() != in.Regular() {
			f.resized[ino] = struct{}{}
		}
	}
	return nil
}

// watched is a disk that does not change. It keeps the first error, and what was read last: consecutive
// inodes are in one block, and share a descriptor.
type watched struct {
	io.ReaderAt
	err  error
	seen map[int64][]byte // by offset
}

// maxSeen is how many reads are kept.
const maxSeen = 64

func (w *watched) ReadAt(b []byte, off int64) (int, error) {
	if seen := w.seen[off]; len(seen) >= len(b) {
		return copy(b, seen), nil
	}
	n, err := w.ReaderAt.ReadAt(b, off)
	if n == len(b) {
		if len(w.seen) == maxSeen {
			clear(w.seen)
		}
		w.seen[off] = bytes.Clone(b)
	} else if err != nil && w.err == nil {
		w.err = err
	}
	return n, err
}

// writeAll writes blocks, which ascend on the disk: straight from memory, if the disk supports
// that. The disk may put off writing blocks that nobody owns.
func (f *finisher) writeAll(data []block) error {
	if later, ok := f.disk.(jbd2.FreeDisk); ok {
		owned, free := divide(data)
		if err := f.writeFree(later, free); err != nil {
			return fmt.Errorf("write blocks: %w", err)
		}
		data = owned
	}
	for _, b := range data {
		if _, err := f.view(b); err != nil {
			return err // before anything is written
		}
		f.report.Data += b.len
	}
	if straight, ok := f.disk.(jbd2.StretchDisk); ok {
		all := slices.Collect(runs(data))
		if err := jbd2.WriteStretches(straight, len(all), func(i int) (jbd2.Stretch, error) { return f.stretch(all[i]) }); err != nil {
			return fmt.Errorf("write blocks: %w", err)
		}
		return nil
	}
	buf := make([]byte, 0, chunk)
	for run := range runs(data) {
		s, err := f.stretch(run)
		if err != nil {
			return err
		}
		buf = buf[:0]
		for _, piece := range s.Data {
			buf = append(buf, piece...)
		}
		if _, err := f.disk.WriteAt(buf, s.Off); err != nil {
			return fmt.Errorf("write blocks: %w", err)
		}
	}
	return nil
}

// divide separates blocks that nobody owns from the others, in their order.
func divide(data []block) (owned, free []block) {
	for _, b := range data {
		if b.free {
			free = append(free, b)
		} else {
			owned = append(owned, b)
		}
	}
	return owned, free
}

// writeFree lets the disk write blocks later. The disk reads all of them now: missing memory is an
// error before anything relies on them.
func (f *finisher) writeFree(disk jbd2.FreeDisk, data []block) error {
	all := slices.Collect(runs(data))
	if len(all) == 0 {
		return nil
	}
	for _, b := range data {
		f.report.Data += b.len
	}
	return disk.WriteFree(len(all), func(i int) (jbd2.Stretch, error) { return f.stretch(all[i]) })
}

// runs yields blocks that are adjacent on the disk, to be written at once.
func runs(data []block) iter.Seq[[]block] {
	return func(yield func([]block) bool) {
		for len(data) > 0 {
			n, size := 1, data[0].len
			for n < len(data) && data[n].disk == data[0].disk+size && size+data[n].len <= chunk {
				size += data[n].len
				n++
			}
			if !yield(data[:n]) {
				return
			}
			data = data[n:]
		}
	}
}

// view returns the content of a block, without the zeros at its end.
func (f *finisher) view(b block) ([]byte, error) {
	if b.data != nil {
		return b.data, nil
	}
	view, err := f.mem.View(b.phys, int(b.used))
	if err != nil {
		return nil, fmt.Errorf("read memory: %w", err)
	}
	return view, nil
}

// stretch returns adjacent blocks as one stretch. It may be called from several goroutines.
func (f *finisher) stretch(data []block) (jbd2.Stretch, error) {
	s := jbd2.Stretch{Off: data[0].disk}
	for _, b := range data {
		view, err := f.view(b)
		if err != nil {
			return s, err
		}
		if b.used < b.len {
			padded := make([]byte, b.len)
			copy(padded, view)
			view = padded
		}
		s.Data = append(s.Data, view)
	}
	return s, nil
}
