package offline

import (
	"context"
	"errors"
	"fmt"

	"understudy.dev/understudy/internal/live/disk"
	"understudy.dev/understudy/internal/takeover"
)

// Settle finishes each interrupted commit to a disk, or to a part of it, without the memory that the
// commit was from, which a power loss may have taken: everything that is to be written is in the work
// directory, and work is as in Options. It returns a report for each commit; there is none if the disk is not
// in between. The disk is claimed only if it is in between.
func Settle(ctx context.Context, path, work string, from Source) ([]*Report, error) {
	parts, err := from.unsettled(path)
	if err != nil {
		return nil, fmt.Errorf("look for a commit to %s that was broken off: %w", path, err)
	}
	var reports []*Report
	var errs []error
	for _, part := range parts {
		r, err := from.settle(ctx, path, part, work)
		if r != nil {
			reports = append(reports, r)
		}
		errs = append(errs, err)
	}
	return reports, errors.Join(errs...)
}

// unsettled returns the parts of a disk that are in between.
func (s Source) unsettled(path string) (parts []disk.Where, err error) {
	f, err := s.Look(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	areas, _, _ := f.Areas() // if the table cannot be read, only the whole disk is looked at
	for _, a := range areas {
		is, err := InBetween(f.On(a))
		if err != nil {
			return nil, err
		}
		if is {
			parts = append(parts, a.Where)
		}
	}
	return parts, nil
}

func (s Source) settle(ctx context.Context, path string, part disk.Where, work string) (_ *Report, err error) {
	d, err := s.Open(path, part, work)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	id, unfinished := d.Unfinished()
	if !unfinished || d.Other() {
		return nil, nil
	}
	done, err := d.Finish(ctx, id)
	if err != nil {
		return nil, err
	}
	r := &Report{
		Image: id.Image, Kernel: id.Kernel, Disk: path, Where: part, FileSystem: FileSystem{UUID: id.UUID}, Resumed: true,
		Refused: []takeover.Refusal{}, Complete: true,
	}
	r.stages(nil, done.Stages)
	if done.Lacks != "" {
		r.refuse(takeover.Refusal{Reason: done.Lacks})
	}
	return r, nil
}
