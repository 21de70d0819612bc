package device

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"understudy.dev/understudy/internal/live/disk"
)

// Section is a part of an image, such as a partition or a logical volume, used like an image. Nothing outside of
// it is read or written.
type Section struct {
	Direct
	At []disk.Stretch // of the image, in the order of the section's own bytes
}

// On is an area of an image.
func On(image *os.File, a disk.Area) Section { return Section{Direct{image}, a.At} }

// Len returns the size in bytes.
func (s Section) Len() int64 { return disk.Area{At: s.At}.Len() }

// on returns where n bytes at off are in the image. It fails unless all of them are in the section.
func (s Section) on(off, n int64) (at []disk.Stretch, err error) {
	if size := s.Len(); off < 0 || n < 0 || off > size-n {
		return nil, fmt.Errorf("%d bytes at %d of a partition of %d: %w", n, off, size, io.ErrUnexpectedEOF)
	}
	for _, a := range s.At {
		if off < a.Len && n > 0 {
			here := min(n, a.Len-off)
			at = append(at, disk.Stretch{Off: a.Off + off, Len: here})
			off, n = off+here, n-here
		}
		off -= a.Len
		if n == 0 {
			break
		}
	}
	return at, nil
}

func (s Section) ReadAt(b []byte, off int64) (int, error) { return s.each(s.Direct.ReadAt, b, off) }

func (s Section) WriteAt(b []byte, off int64) (int, error) { return s.each(s.Direct.WriteAt, b, off) }

// each calls do for each stretch of the image that b, at off, is from.
func (s Section) each(do func([]byte, int64) (int, error), b []byte, off int64) (done int, err error) {
	at, err := s.on(off, int64(len(b)))
	if err != nil {
		return 0, err
	}
	for _, a := range at {
		n, err := do(b[done:done+int(a.Len)], a.Off)
		if done += n; err != nil {
			return done, err
		}
	}
	return done, nil
}

// WriteStretches writes as Direct does. It checks that all stretches are in the section before it writes one.
func (s Section) WriteStretches(n int, at func(int) (off int64, data [][]byte)) error {
	all := make([]disk.Stretch, n)
	for i := range all {
		off, data := at(i)
		all[i] = disk.Stretch{Off: off, Len: length(data)}
	}
	return s.Write(all, func(i int) ([][]byte, error) {
		_, data := at(i)
		return data, nil
	})
}

// Write is WriteStretches with stretches that are known without their data, which data returns for one of them. It may be
// called more than once for a stretch, and from several goroutines. A stretch for which it fails is not written; others
// may be.
func (s Section) Write(all []disk.Stretch, data func(int) ([][]byte, error)) error {
	type part struct {
		of   int   // index in all
		from int64 // first byte of that one
		at   disk.Stretch
	}
	var parts []part
	for i, one := range all {
		at, err := s.on(one.Off, one.Len)
		if err != nil {
			return err
		}
		from := int64(0)
		for _, a := range at {
			parts = append(parts, part{i, from, a})
			from += a.Len
		}
	}
	var mu sync.Mutex
	var failed error
	err := s.Direct.WriteStretches(len(parts), func(k int) (int64, [][]byte) {
		p := parts[k]
		b, err := data(p.of)
		if n := length(b); err == nil && n != all[p.of].Len {
			err = fmt.Errorf("read what goes to byte %d: %d bytes of %d", all[p.of].Off, n, all[p.of].Len)
		}
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			failed = errors.Join(failed, err)
			return 0, nil
		}
		return p.at.Off, cut(b, p.from, p.at.Len)
	})
	return errors.Join(failed, err)
}

func length(data [][]byte) (n int64) {
	for _, b := range data {
		n += int64(len(b))
	}
	return n
}

// cut returns n bytes of data, from one byte on.
func cut(data [][]byte, from, n int64) (out [][]byte) {
	for _, b := range data {
		if skip := min(from, int64(len(b))); skip > 0 {
			b, from = b[skip:], from-skip
		}
		b = b[:min(n, int64(len(b)))]
		if n -= int64(len(b)); len(b) > 0 {
			out = append(out, b)
		}
	}
	return out
}

// Seek only serves to find the size: it returns off for io.SeekStart, and the size of the section
// plus off for io.SeekEnd.
func (s Section) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
		return off, nil
	case io.SeekEnd:
		return s.Len() + off, nil
	}
	return 0, fmt.Errorf("seek in a partition: whence %d is not supported", whence)
}
