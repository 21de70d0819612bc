package offline

import (
	"context"
	"errors"
	"fmt"

	"understudy.dev/understudy/internal/live/rootdisk"
	"understudy.dev/understudy/internal/takeover"
)

// RescueRoot brings to a root disk that nobody uses the data that only its kernel's memory has: to each file system on
// it that was not unmounted, and that the kernel had mounted. o names the memory and the disk. There is a report for
// each file system that was brought up to date. An error is takeover.ErrInBetween if nothing can boot from the disk
// until this is done.
func RescueRoot(ctx context.Context, o Options) ([]*Report, error) {
	o.Raw = true
	parts, err := rootdisk.Unclean(o.Disk, InBetween)
	if err != nil {
		return nil, err
	}
	var reports []*Report
	var errs []error
	for _, o.Where = range parts {
		report, err := Run(ctx, o)
		if err == nil {
			reports = append(reports, report)
			continue
		}
		if errors.Is(err, ErrNotMounted) && !errors.Is(err, takeover.ErrInBetween) {
			continue
		}
		if !o.Whole() {
			err = fmt.Errorf("%s: %w", o.Where.Name(), err)
		}
		if unfinished(o) {
			err = fmt.Errorf("%w: %w", takeover.ErrInBetween, err)
		}
		errs = append(errs, err)
	}
	return reports, errors.Join(errs...)
}

// unfinished reports whether a commit to a disk, or to a part of it, is partly written.
func unfinished(o Options) bool {
	d, err := o.Open(o.Disk, o.Where, o.Work)
	if err != nil {
		return errors.Is(err, takeover.ErrInBetween)
	}
	_, unfinished := d.Unfinished()
	return d.Close() == nil && unfinished && !d.Other()
}
