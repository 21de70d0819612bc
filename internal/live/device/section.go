package device

import (
	"fmt"
	"io"
)

// Section is a stretch of an image, such as a partition, used like an image. Nothing outside of
// it is read or written.
type Section struct {
	Direct
	Off, Len int64 // bytes
}

// within checks that n bytes at off are in the section.
func (s Section) within(off, n int64) error {
	if off < 0 || n < 0 || off > s.Len-n {
		return fmt.Errorf("%d bytes at %d of a partition of %d: %w", n, off, s.Len, io.ErrUnexpectedEOF)
	}
	return nil
}

func (s Section) ReadAt(b []byte, off int64) (int, error) {
	if err := s.within(off, int64(len(b))); err != nil {
		return 0, err
	}
	return s.Direct.ReadAt(b, s.Off+off)
}

func (s Section) WriteAt(b []byte, off int64) (int, error) {
	if err := s.within(off, int64(len(b))); err != nil {
		return 0, err
	}
	return s.Direct.WriteAt(b, s.Off+off)
}

// WriteStretches writes as Direct does. It checks that all stretches are in the section before it writes one.
func (s Section) WriteStretches(n int, at func(int) (off int64, data [][]byte)) error {
	for i := range n {
		off, data := at(i)
		size := int64(0)
		for _, piece := range data {
			size += int64(len(piece))
		}
		if err := s.within(off, size); err != nil {
			return err
		}
	}
	return s.Direct.WriteStretches(n, func(i int) (int64, [][]byte) {
		off, data := at(i)
		return s.Off + off, data
	})
}

// Seek only serves to find the size: it returns off for io.SeekStart, and the size of the section
// plus off for io.SeekEnd.
func (s Section) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
		return off, nil
	case io.SeekEnd:
		return s.Len + off, nil
	}
	return 0, fmt.Errorf("seek in a partition: whence %d is not supported", whence)
}
