package device

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Direct is an image to which large amounts are written straight from the memory that has
// them, bypassing the host's page cache (O_DIRECT, open(2)). What cannot be written like that
// goes through the cache. So does what is not whole pages of the image: a page of which one part is written past
// the cache, and another one through it, may be written back with the first part as it was (mm/filemap.c,
// dio_warn_stale_pagecache).
type Direct struct{ *os.File }

const (
	// writers is the number of goroutines that write at once: a disk with a queue gains from
	// several, and one without a queue loses nothing.
	writers = 4
	// maxPieces is how many pieces are written with one call (limits.h, IOV_MAX).
	maxPieces = 1024
)

// WriteStretches writes n stretches that do not overlap, in any order. at returns the offset
// of a stretch, in bytes, and the pieces of memory to be written there. The stretches are not
// durable before a sync.
func (d Direct) WriteStretches(n int, at func(int) (off int64, data [][]byte)) error {
	// The file is opened again, since O_DIRECT is a flag of the open file.
	direct, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", d.Fd()), os.O_RDWR|unix.O_DIRECT, 0)
	if err == nil {
		defer direct.Close()
	}
	var next atomic.Int64
	var group errgroup.Group
	for range min(writers, n) {
		group.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return nil
				}
				off, data := at(i)
				if err := d.writeStretch(direct, off, data); err != nil {
					return err
				}
			}
		})
	}
	return group.Wait()
}

// writeStretch writes one stretch, bypassing the cache if direct is not nil.
func (d Direct) writeStretch(direct *os.File, off int64, data [][]byte) error {
	for len(data) > 0 {
		some := data[:min(len(data), maxPieces)]
		data = data[len(some):]
		size := 0
		for _, piece := range some {
			size += len(piece)
		}
		if page := int64(os.Getpagesize()); direct != nil && off%page == 0 && int64(size)%page == 0 {
			n, err := unix.Pwritev(int(direct.Fd()), some, off)
			if err == nil && n == size {
				off += int64(n)
				continue
			}
			if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EFAULT) {
				return fmt.Errorf("write %d bytes at %d: %w", size, off, err)
			}
		}
		for _, piece := range some {
			if _, err := d.WriteAt(piece, off); err != nil {
				return err
			}
			off += int64(len(piece))
		}
	}
	return nil
}
