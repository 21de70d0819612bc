package offline

import (
	"errors"
	"fmt"
	"path/filepath"

	"understudy.dev/understudy/internal/live/device"
	"understudy.dev/understudy/internal/live/wire"
)

// staged is a job as the guest gets it: a staging disk with all the bytes, and the requests
// that point into it.
type staged struct {
	*device.Staging
	blocks wire.WriteRequest // Len is 0 if there are none
	mount  wire.MountRequest
	apply  wire.ApplyRequest // likewise
}

// page is the alignment of the parts of the staging disk, in bytes.
const page = 4096

func align(n int64) int64 { return (n + page - 1) &^ (page - 1) }

// stage lays out the staging disk: the data of the files, the raw blocks, and the lists
// that say where all of it belongs. The staging disk lies in the directory work; size is
// the size of the disk that is written to.
func stage(work string, size int64, j Job, r *Result) (*staged, error) {
	blocks, at, err := place(j.Raw, align(j.Size), size)
	if err != nil {
		return nil, err
	}
	s := &staged{mount: wire.MountRequest{Disk: diskName, Check: j.Check}}
	lists := make(map[int64][]byte)
	put := func(list []byte) (int64, int64) {
		from := at
		lists[from] = list
		at = align(at + int64(len(list)))
		return from, int64(len(list))
	}
	s.apply.Disk, s.blocks.Disk = diskName, diskName
	if len(blocks) > 0 {
		s.blocks.Blocks, s.blocks.Len = put(wire.EncodeBlocks(blocks))
	}
	if len(j.Files) > 0 {
		s.apply.Plan, s.apply.Len = put(wire.EncodePlan(j.Files))
	}
	if len(j.Attrs) > 0 {
		list, err := wire.EncodeAttrs(j.Attrs)
		if err != nil {
			return nil, err
		}
		s.apply.Attrs, s.apply.AttrsLen = put(list)
	}
	if s.Staging, err = device.NewStaging(filepath.Join(work, stagingName), at); err != nil {
		return nil, err
	}
	if err := r.stage("gather", func() error { return s.fill(j, blocks, lists, at) }); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// fill puts everything in its place.
func (s *staged) fill(j Job, blocks []wire.Run, lists map[int64][]byte, total int64) error {
	// Writing to a hole of the file for which there is no room would raise SIGBUS.
	if err := s.Reserve(total); err != nil {
		return err
	}
	b, err := s.Map()
	if err != nil {
		return err
	}
	if err := j.Gather(b[:j.Size]); err != nil {
		return err
	}
	for i, w := range j.Raw {
		copy(b[blocks[i].Staged:], w.Data)
	}
	for at, list := range lists {
		copy(b[at:], list)
	}
	return nil
}

// place gives each block its place on the staging disk, from offset at on. It returns the
// first page boundary behind them.
func place(raw []Raw, at, size int64) ([]wire.Run, int64, error) {
	var blocks []wire.Run
	for _, w := range raw {
		n := int64(len(w.Data))
		if w.Off < 0 || n == 0 || w.Off%sector != 0 || n%sector != 0 || w.Off > size-n {
			return nil, 0, fmt.Errorf("stage blocks: %d bytes at %d of a disk of %d", n, w.Off, size)
		}
		blocks = append(blocks, wire.Run{Off: w.Off, Len: n, Staged: at})
		at += n
	}
	return blocks, align(at), nil
}
