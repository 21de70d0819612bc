package takeover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy.dev/understudy/internal/live/wire"
)

// disk brings one disk over. The last commit is finished before anybody mounts the disk; the dead
// memory is gathered while the understudy mounts it.
func (r *run) disk(ctx context.Context, disk string) error {
	r.refusedBefore = r.report.Refusals()
	known := len(r.report.Refused)
	if err := r.record(disk, Fenced); err != nil {
		return err
	}
	layered := slices.Contains(r.options.Layered, disk)
	if layered { // nobody mounts it yet
		if err := r.handOver(ctx, disk, stepLayers); err != nil {
			return err
		}
	}
	remains, commit, err := r.examine(ctx, disk)
	if err != nil {
		return err
	}
	r.teller.meet(ctx)
	if remains == nil && r.options.Salvager != nil && r.options.StopIfRefused {
		return fmt.Errorf("%s (takeover: {refused: serve} would go on without what is unsaved)", r.report.Refused[known].Reason)
	}
	if remains != nil {
		// Before the disk is handed over: without room, all is left as it is.
		if _, err := r.machine.Staging(r.staged + remains.Size()); err != nil {
			return fmt.Errorf("make room for what is unsaved: %w", err)
		}
	}
	progress := HandedOver
	if remains == nil {
		progress = Given
	}
	if err := r.record(disk, progress); err != nil {
		return err
	}
	var request wire.ApplyRequest
	var found *wire.Check
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		request = r.gather(disk, remains)
		return nil
	})
	g.Go(func() (err error) {
		found, err = r.bring(gctx, disk, layered, commit.Check != "")
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if found != nil {
		commit.Found = found.Output
	}
	var named wire.NameResult
	if found.Names() && remains != nil {
		err := r.limited(ctx, stepNames, func(ctx context.Context) (err error) {
			named, err = r.name(ctx, disk, found, remains)
			return err
		})
		if err != nil {
			return err
		}
	}
	if remains != nil {
		r.report.Commits = append(r.report.Commits, commit)
	}
	if request.Len > 0 {
		if err := r.measure("apply", func() error { return r.apply(ctx, request, named, remains) }); err != nil {
			return err
		}
	}
	return r.record(disk, Applied)
}

// bring makes the understudy mount a disk, after a check of its file system if one is needed. A
// disk with layers has been handed over already, and the understudy checks it itself.
func (r *run) bring(ctx context.Context, disk string, layered, check bool) (found *wire.Check, err error) {
	if check && !layered {
		err := r.measure("e2fsck", func() (err error) {
			found, err = r.machine.Check(ctx, disk)
			return err
		})
		if err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return nil, err
		}
		check = err != nil
	}
	if !layered {
		if err := r.handOver(ctx, disk, stepDisk); err != nil {
			return nil, err
		}
	}
	if check {
		err := r.measure(stepMount, func() (err error) {
			found, err = r.machine.Mount(ctx, disk, true)
			return err
		})
		return found, err
	}
	return found, r.limited(ctx, stepMount, func(ctx context.Context) error {
		_, err := r.machine.Mount(ctx, disk, false)
		return err
	})
}

func (r *run) handOver(ctx context.Context, disk, step string) error {
	if err := r.limited(ctx, step, func(ctx context.Context) error { return r.machine.HandOver(ctx, disk) }); err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	return nil
}

func (r *run) record(disk string, p Progress) error {
	if r.options.Record == nil {
		return nil
	}
	if err := r.options.Record(disk, p, r.report.Refusals() > r.refusedBefore); err != nil {
		return fmt.Errorf("record that it is %s: %w", p, err)
	}
	return nil
}

// examine examines a disk, and finishes its last commit. It returns no Remains if there is
// nothing to gather; the report says why. An error means that the disk cannot be opened, or takes no writes: what is
// unsaved waits in the dead memory until that is mended, and nobody mounts the disk.
func (r *run) examine(ctx context.Context, disk string) (Remains, Commit, error) {
	commit := Commit{Disk: disk}
	if r.options.Salvager == nil {
		return nil, commit, nil
	}
	var image Image
	var writes *written
	var remains Remains
	err := r.measure("check", func() (err error) {
		if image, err = r.machine.Image(ctx, disk); err != nil {
			return err
		}
		image, writes = watched(image)
		remains, err = r.options.Salvager.Examine(image)
		return err
	})
	if writes == nil { // the disk may be there a moment later, and a mount would lose what memory has for it
		return nil, commit, err
	}
	if err != nil {
		r.refuse(disk, Refusal{Reason: err.Error()})
		return nil, commit, nil
	}
	start := time.Now()
	err = r.measure("commit", func() (err error) {
		commit, err = remains.Finish(image)
		return err
	})
	commit.Disk = disk
	for _, p := range commit.Steps {
		r.report.Timeline.Add("  "+p.Name, start, start.Add(p.Took))
		start = start.Add(p.Took)
	}
	if writes.failed != nil { // also if it was a write after the commit: the understudy could not replay the commit either
		return nil, commit, fmt.Errorf("write the last commit of disk %s: %w", disk, writes.failed)
	}
	if err != nil {
		lost, named := errors.AsType[*GivenUp](err)
		if !named {
			lost = &GivenUp{Err: err}
		}
		r.refuse(disk, lost.Refused()...)
		return nil, commit, nil
	}
	return remains, commit, nil
}

// gather returns an empty request if nothing is to be applied.
func (r *run) gather(disk string, remains Remains) wire.ApplyRequest {
	if remains == nil {
		return wire.ApplyRequest{}
	}
	var request wire.ApplyRequest
	err := r.measure("gather", func() error {
		var err error
		request, err = r.stage(disk, remains)
		return err
	})
	if err != nil {
		r.refuse(disk, Refusal{Reason: err.Error()})
		return wire.ApplyRequest{}
	}
	return request
}

// stage puts the gathered data on the staging disk, and its plan behind it.
func (r *run) stage(disk string, remains Remains) (wire.ApplyRequest, error) {
	var none wire.ApplyRequest
	from := r.staged
	staging, err := r.machine.Staging(from + remains.Size())
	if err != nil {
		return none, err
	}
	found, err := remains.Gather(staging[from:])
	if err != nil {
		return none, err
	}
	r.refuse(disk, found.Refused...)
	if len(found.Files) == 0 {
		return none, nil
	}
	for _, f := range found.Files {
		for i := range f.Runs {
			f.Runs[i].Staged += from
		}
	}
	r.staged = align(from + found.Used)
	request := wire.ApplyRequest{Disk: disk}
	if request.Plan, request.Len, err = r.stageList(wire.EncodePlan(found.Files)); err != nil {
		return none, err
	}
	if len(found.Attrs) > 0 {
		attrs, err := wire.EncodeAttrs(found.Attrs)
		if err == nil {
			request.Attrs, request.AttrsLen, err = r.stageList(attrs)
		}
		if err != nil {
			return none, err
		}
	}
	return request, nil
}

// stageList puts a list behind what is staged, and says where.
func (r *run) stageList(list []byte) (at, n int64, err error) {
	at, n = r.staged, int64(len(list))
	staging, err := r.machine.Staging(at + n)
	if err != nil {
		return 0, 0, err
	}
	if at+align(n) > int64(len(staging)) {
		return 0, 0, errors.New("staging is too small for the plan")
	}
	copy(staging[at:], list)
	r.staged = align(at + n)
	return at, n, nil
}

// name makes the understudy undo or finish the operations on names that were in flight. What it
// cannot do is in the report.
func (r *run) name(ctx context.Context, disk string, found *wire.Check, remains Remains) (wire.NameResult, error) {
	request := remains.Names(found)
	request.Disk = disk
	r.report.MoreRefused += found.More
	result, err := r.machine.Name(ctx, request)
	if errors.Is(err, wire.ErrUnsent) {
		r.refuse(disk, Refusal{Reason: fmt.Sprintf("its names stay as e2fsck left them: %v", err)})
		return result, nil
	}
	for _, f := range result.Failures {
		r.refuse(disk, remains.Refusal(f))
	}
	r.report.Acts = append(r.report.Acts, result.Acts...)
	r.report.MoreRefused, r.report.MoreActs = r.report.MoreRefused+result.MoreFailures, r.report.MoreActs+result.MoreActs
	return result, err
}

// apply makes the understudy write files, and counts what it wrote. A file that it could not
// write is in the report, unless an operation in flight removed it; a takeover goes on without
// it.
func (r *run) apply(ctx context.Context, request wire.ApplyRequest, named wire.NameResult, remains Remains) error {
	start := time.Now()
	result, err := r.machine.Apply(ctx, request)
	if err != nil {
		return err
	}
	for _, p := range result.Phases {
		r.report.Timeline.Add("  "+p.Name, start, start.Add(p.Took))
		start = start.Add(p.Took)
	}
	r.report.Files += result.Files
	r.report.Bytes += result.Bytes
	r.report.Acts = append(r.report.Acts, result.Acts...)
	r.report.MoreRefused, r.report.MoreActs = r.report.MoreRefused+result.MoreFailures, r.report.MoreActs+result.MoreActs
	for _, f := range named.Left(result.Failures) {
		r.refuse(request.Disk, remains.Refusal(f))
	}
	return nil
}

// align rounds up to a page, so that a plan begins on a sector.
func align(n int64) int64 { return (n + 4095) &^ 4095 }
