package offline

import (
	"errors"
	"fmt"
	"path/filepath"

	"understudy/device"
	"understudy/link"
)

// staged is a job as the guest gets it: a disk with all the bytes, and the calls
// that point at them.
type staged struct {
	*device.Staging
	blocks link.WriteRequest // Len is 0 if there are none
	mount  link.MountRequest
	apply  link.ApplyRequest // likewise
}

// page is what the parts of the staging disk begin at, in bytes.
const page = 4096

func align(n int64) int64 { return (n + page - 1) &^ (page - 1) }

// stage lays out the staging disk: the data of the files, their plan, the data
// of the raw blocks, their list.
func (d *Disk) stage(j Job, r *Result) (*staged, error) {
	raw := align(j.Size)
	var plan []byte
	if len(j.Files) > 0 {
		plan = link.EncodePlan(j.Files)
		raw = align(raw + int64(len(plan)))
	}
	blocks, end, err := place(j.Raw, raw, d.Size)
	if err != nil {
		return nil, err
	}
	var list []byte
	if len(blocks) > 0 {
		list = link.EncodeBlocks(blocks)
	}
	total := align(end + int64(len(list)))
	s := &staged{mount: link.MountRequest{Disk: diskName, Check: j.Check}}
	if s.Staging, err = device.NewStaging(filepath.Join(d.work, stagingName), total); err != nil {
		return nil, err
	}
	err = r.stage("gather", func() error {
		// A hole of the file that cannot be filled would be a SIGBUS.
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
		copy(b[align(j.Size):], plan)
		for i, w := range j.Raw {
			copy(b[blocks[i].Staged:], w.Data)
		}
		copy(b[end:], list)
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	s.apply = link.ApplyRequest{Disk: diskName, Plan: align(j.Size), Len: int64(len(plan))}
	s.blocks = link.WriteRequest{Disk: diskName, Blocks: end, Len: int64(len(list))}
	return s, nil
}

// place gives each block its place on the staging disk, from a page on. It returns
// the first page behind them.
func place(raw []Raw, at, size int64) ([]link.Run, int64, error) {
	var blocks []link.Run
	for _, w := range raw {
		n := int64(len(w.Data))
		if w.Off < 0 || n == 0 || w.Off%sector != 0 || n%sector != 0 || w.Off > size-n {
			return nil, 0, fmt.Errorf("stage blocks: %d bytes at %d of a disk of %d", n, w.Off, size)
		}
		blocks = append(blocks, link.Run{Off: w.Off, Len: n, Staged: at})
		at += n
	}
	return blocks, align(at), nil
}
