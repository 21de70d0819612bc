package offline

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/live/fence"
	"understudy.dev/understudy/internal/live/qcow2"
)

// hold is a disk that nobody else uses: a raw image, a block device, or what a qcow2 image shows.
type hold struct {
	*fence.Claim // of the raw file or the device

	raw   string      // the path of that
	shown *qcow2.Disk // what shows it, if the image is qcow2; nil in another hold that shares it
}

// Source says how an image is to be read.
type Source struct {
	Raw     bool     // it is raw, even if its content, which is its guest's, looks like another format
	Backing []string // files that it may refer to, if it is qcow2
}

// shows reports whether an image is qcow2.
func (s Source) shows(path string) (bool, error) {
	if s.Raw {
		return false, nil
	}
	is, err := qcow2.Is(path)
	if err != nil {
		err = fmt.Errorf("open disk: %w", err)
	}
	return is, err
}

// take claims a disk.
func (s Source) take(path string) (*hold, error) {
	c, err := fence.Take(path)
	if err != nil {
		return nil, err
	}
	is, err := s.shows(path)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	h := &hold{Claim: c, raw: path}
	if !is {
		return h, nil
	}
	if err := c.Close(); err != nil { // from here on QEMU's lock is that of the daemon
		return nil, err
	}
	if h.shown, err = qcow2.Open(path, true, s.Backing); err != nil {
		return nil, err
	}
	h.raw = h.shown.Path
	if h.Claim, err = fence.Take(h.raw); err != nil {
		return nil, errors.Join(err, h.shown.Close())
	}
	return h, nil
}

// share returns another hold of the same disk, to be closed before this one.
func (h *hold) share() (*hold, error) {
	c, err := h.Claim.Share()
	if err != nil {
		return nil, err
	}
	return &hold{Claim: c, raw: h.raw}, nil
}

// Close releases the disk. What was written to a qcow2 image is in it then.
func (h *hold) Close() error {
	err := h.Claim.Close()
	if h.shown != nil {
		err = errors.Join(err, h.shown.Close())
	}
	return err
}

// View is a disk that is only read. Others may use it.
type View struct {
	*os.File
	Size  int64 // bytes
	shown *qcow2.Disk
}

// Look opens a disk for reading.
func (s Source) Look(path string) (*View, error) {
	is, err := s.shows(path)
	if err != nil {
		return nil, err
	}
	v := &View{}
	if is {
		if v.shown, err = qcow2.Open(path, false, s.Backing); err != nil {
			return nil, err
		}
		path = v.shown.Path
	}
	if v.File, err = os.Open(path); err == nil {
		v.Size, err = v.Seek(0, io.SeekEnd)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open disk %s: %w", path, err), v.Close())
	}
	return v, nil
}

// Areas returns the whole disk, and then its partitions and linear logical volumes, as disk.Areas does. With an error it
// returns the whole disk only.
func (v *View) Areas() (areas []disk.Area, unusable []disk.Unusable, err error) {
	parts, unusable, err := disk.Areas(v, v.Size)
	parts = slices.DeleteFunc(parts, func(a disk.Area) bool { return a.Whole() })
	return append([]disk.Area{{At: []disk.Stretch{{Len: v.Size}}}}, parts...), unusable, err
}

// On is an area of the disk.
func (v *View) On(a disk.Area) device.Section { return device.On(v.File, a) }

// Close closes the disk.
func (v *View) Close() error {
	var errs []error
	if v.File != nil {
		errs = append(errs, v.File.Close())
	}
	if v.shown != nil {
		errs = append(errs, v.shown.Close())
	}
	return errors.Join(errs...)
}
