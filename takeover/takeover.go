// Package takeover is the state machine that makes an understudy the active
// side: fence, salvage, hand-over, services, address, in that order of safety.
//
// It sees the living column through Machine and the dead one through Salvager.
// Whatever fails before the fence is proven leaves everything untouched;
// whatever of the salvage fails or is refused leaves a file as an ordinary
// crash would, and stands in the report.
package takeover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy/link"
)

// Machine is what a takeover does to the running side and its devices.
type Machine interface {
	// Fence proves that the dead side cannot write. Nothing else is called
	// if it fails.
	Fence(ctx context.Context) error
	// Image reads the fenced image of a disk, until its HandOver.
	Image(disk string) (io.ReaderAt, error)
	// HandOver gives a fenced disk to the understudy.
	HandOver(ctx context.Context, disk string) error
	// Mount has the understudy mount a disk that it was handed.
	Mount(ctx context.Context, disk string) error
	// Staging is memory that the understudy can read and nobody else uses.
	Staging() ([]byte, error)
	// Apply has the understudy write a plan whose encoding and data are in
	// Staging.
	Apply(ctx context.Context, r link.ApplyRequest) (link.ApplyResult, error)
	// Start starts the services of the role.
	Start(ctx context.Context) error
	// GoLive lets the network reach the understudy.
	GoLive(ctx context.Context) error
	// Sync makes what was applied durable.
	Sync(ctx context.Context) error
}

// Salvager reads the dead side's memory.
type Salvager interface {
	// Examine finds the file system of an image in the dead memory, and
	// checks that the image is as that kernel left it.
	Examine(image io.ReaderAt) (Remains, error)
}

// Remains are one file system's unsaved files in the dead memory.
type Remains interface {
	// Gather puts the unsaved bytes into staging and says whose they are.
	Gather(staging []byte) (Gathered, error)
}

// Gathered is what Gather found.
type Gathered struct {
	Files   []link.File
	Used    int64 // bytes of staging
	Bytes   int64 // unsaved bytes in it
	Refused []Refusal
}

// Refusal is something that salvage saw and did not bring over.
type Refusal struct {
	What   string `json:"what"`
	Count  int    `json:"count"`
	Reason string `json:"reason"`
}

// Options are the choices of a takeover.
type Options struct {
	Disks    []string
	Salvager Salvager // nil: none, the unsaved data is given up
	// SyncFirst makes what was applied durable before the services start.
	SyncFirst bool
	// Fenced is called once the fence stands, before anything is handed over.
	Fenced func()
}

// Report tells what a takeover did.
type Report struct {
	Files    int       `json:"files"`
	Bytes    int64     `json:"bytes_recovered"`
	Refused  []Refusal `json:"refused"`
	Durable  bool      `json:"durable"` // all that was applied is on the disks
	Timeline *Timeline `json:"-"`
}

// Run takes over. The timeline has the detection in it already.
func Run(ctx context.Context, m Machine, t *Timeline, o Options) (*Report, error) {
	r := &run{machine: m, options: o, report: &Report{Timeline: t, Refused: []Refusal{}}}
	if err := t.Measure("fence", func() error { return m.Fence(ctx) }); err != nil {
		return nil, err
	}
	if o.Fenced != nil {
		o.Fenced()
	}
	for _, d := range o.Disks {
		if err := r.disk(ctx, d); err != nil {
			return nil, fmt.Errorf("take over disk %s: %w", d, err)
		}
	}
	if o.SyncFirst {
		if err := r.sync(ctx); err != nil {
			return nil, err
		}
	}
	if err := t.Measure("services", func() error { return m.Start(ctx) }); err != nil {
		return nil, fmt.Errorf("start services: %w", err)
	}
	if err := t.Measure("address", func() error { return m.GoLive(ctx) }); err != nil {
		return nil, fmt.Errorf("bring address over: %w", err)
	}
	return r.report, nil
}

// Settle makes durable what a takeover applied, if it did not do so before it
// went live. The dead memory must be kept until it has succeeded.
func Settle(ctx context.Context, m Machine, r *Report) error {
	if r.Durable {
		return nil
	}
	return (&run{machine: m, report: r}).sync(ctx)
}

type run struct {
	machine Machine
	options Options
	report  *Report
	staged  int64 // bytes of staging in use
}

// disk brings one disk over. The dead memory is gathered while the understudy
// mounts: the check of the image against that memory has come before both.
func (r *run) disk(ctx context.Context, disk string) error {
	remains := r.examine(disk)
	var request link.ApplyRequest
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		request = r.gather(disk, remains)
		return nil
	})
	g.Go(func() error {
		if err := r.measure("disk", func() error { return r.machine.HandOver(gctx, disk) }); err != nil {
			return fmt.Errorf("hand over: %w", err)
		}
		return r.measure("mount", func() error { return r.machine.Mount(gctx, disk) })
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if request.Len == 0 {
		return nil
	}
	return r.measure("apply", func() error { return r.apply(ctx, request) })
}

// examine gives nil if there is nothing to gather; why stands in the report.
func (r *run) examine(disk string) Remains {
	if r.options.Salvager == nil {
		return nil
	}
	var remains Remains
	err := r.measure("check", func() error {
		image, err := r.machine.Image(disk)
		if err != nil {
			return err
		}
		remains, err = r.options.Salvager.Examine(image)
		return err
	})
	if err != nil {
		r.refuse("disk "+disk, 1, err)
		return nil
	}
	return remains
}

// gather gives an empty request if nothing is to be applied.
func (r *run) gather(disk string, remains Remains) link.ApplyRequest {
	if remains == nil {
		return link.ApplyRequest{}
	}
	var request link.ApplyRequest
	err := r.measure("gather", func() error {
		var err error
		request, err = r.stage(disk, remains)
		return err
	})
	if err != nil {
		r.refuse("disk "+disk, 1, err)
		return link.ApplyRequest{}
	}
	return request
}

// stage lays the gathered data on the staging disk and its plan behind it.
func (r *run) stage(disk string, remains Remains) (link.ApplyRequest, error) {
	var none link.ApplyRequest
	staging, err := r.machine.Staging()
	if err != nil {
		return none, err
	}
	from := r.staged
	found, err := remains.Gather(staging[from:])
	if err != nil {
		return none, err
	}
	r.report.Refused = append(r.report.Refused, found.Refused...)
	if len(found.Files) == 0 {
		return none, nil
	}
	for _, f := range found.Files {
		for i := range f.Runs {
			f.Runs[i].Staged += from
		}
	}
	plan := link.EncodePlan(found.Files)
	at := align(from + found.Used)
	if at+align(int64(len(plan))) > int64(len(staging)) {
		return none, errors.New("staging is too small for the plan")
	}
	copy(staging[at:], plan)
	r.staged = align(at + int64(len(plan)))
	return link.ApplyRequest{Disk: disk, Plan: at, Len: int64(len(plan))}, nil
}

// apply counts what the understudy wrote. A file that it could not write is in
// the report; a takeover goes on without it.
func (r *run) apply(ctx context.Context, request link.ApplyRequest) error {
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
	for _, f := range result.Failures {
		r.refuse(fmt.Sprintf("inode %d generation %d", f.Inode, f.Generation), 1, errors.New(f.Reason))
	}
	return nil
}

func (r *run) sync(ctx context.Context) error {
	if err := r.measure("sync", func() error { return r.machine.Sync(ctx) }); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	r.report.Durable = true
	return nil
}

func (r *run) measure(name string, f func() error) error {
	return r.report.Timeline.Measure(name, f)
}

func (r *run) refuse(what string, count int, err error) {
	r.report.Refused = append(r.report.Refused, Refusal{What: what, Count: count, Reason: err.Error()})
}

// align rounds up to a page, so that a plan begins on a sector.
func align(n int64) int64 { return (n + 4095) &^ 4095 }
