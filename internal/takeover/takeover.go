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
	"time"

	"understudy.dev/understudy/internal/live/wire"
)

// ErrInBetween says that a disk has a part of what is to be written to it: nothing can mount it or boot
// from it until the rest is written, which lies in a work directory.
var ErrInBetween = errors.New("nothing can mount the disk until an interrupted commit to it is finished")

// Veil begins each sector of what stands in the place of the superblock of such a disk.
const Veil = "understudy salvage apply was broken off while it wrote to this disk."

// Options are the choices of a takeover.
type Options struct {
	Disks []string
	// Layered are those of them whose file system only the understudy sees, since it lies on
	// something else than the image.
	Layered  []string
	Salvager Salvager // nil: none, the unsaved data is given up
	Witness  Witness  // nil: none, and no client is told
	Notice   Notice   // of the clients whom Witness knows
	// SyncFirst makes what was applied durable before the services start.
	SyncFirst bool
	// StopIfRefused has a takeover fail, before the understudy sees the disk, if the salvage
	// of a disk is refused as a whole.
	StopIfRefused bool
	// Record makes durable how far a disk has come, before the step that Progress
	// names is taken, and whether something of it was refused until then: then the dead memory has
	// what is not brought to it. It may be nil. If it fails, the takeover does.
	Record func(disk string, p Progress, refused bool) error
	// Fenced is called once the fence stands, before anything is handed over.
	Fenced func()
}

// Report tells what a takeover did.
type Report struct {
	Files   int       `json:"files"`
	Bytes   int64     `json:"bytes_recovered"`
	Commits []Commit  `json:"commits"`
	Refused []Refusal `json:"refused"`
	// MoreRefused is how many more things were, of which an answer had no room for the reasons.
	MoreRefused int `json:"more_refused,omitempty"`
	// Acts are what was done to names that operations in flight were changing, or that a log
	// which nobody finishes did not have.
	Acts     []wire.Act `json:"acts,omitempty"`
	MoreActs int        `json:"more_acts,omitempty"` // likewise
	// Unready are the services that did not come up in time.
	Unready []wire.Unready `json:"unready,omitempty"`
	// Unreached is why the network did not reach the understudy when it served; empty: it did.
	Unreached string    `json:"unreached,omitempty"`
	Durable   bool      `json:"durable"` // all that was applied is on the disks
	Notified  Notified  `json:"notified"`
	Timeline  *Timeline `json:"-"`
}

// Refusals is how many things were refused.
func (r *Report) Refusals() int { return len(r.Refused) + r.MoreRefused }

// Fit leaves out what an answer with the report would have no room for, but for the number.
func (r *Report) Fit() {
	var refused, acts int
	r.Refused, refused = wire.Fit(r.Refused)
	r.Acts, acts = wire.Fit(r.Acts)
	r.MoreRefused, r.MoreActs = r.MoreRefused+refused, r.MoreActs+acts
}

// Progress is how far a takeover has come with a disk.
type Progress string

// What a disk's Progress says.
const (
	// Fenced: the understudy has not seen the disk. What is unsaved is in the dead
	// side's memory.
	Fenced Progress = "fenced"
	// HandedOver: the last commit is carried out, or refused, and the understudy may
	// have mounted the disk and written some of the files.
	HandedOver Progress = "handed over"
	// Given: as HandedOver, and nothing of the dead side's memory is to be brought to it.
	Given Progress = "given"
	// Applied: nothing of the dead side's memory is to be brought to the disk any more:
	// what is not there is in the understudy's, or was refused.
	Applied Progress = "applied"
)

// Serving is a takeover that has come through: the understudy serves. What it
// applied may not be durable yet, and the clients are still being told.
type Serving struct {
	*Report
	run *run
}

// limits are how long a step in the understudy may take. They only bound what hangs: on
// a busy machine, under emulation, a step may take many times as long as usual. The
// writing of files and e2fsck(8), whose time grows with the file system, have none: the
// caller watches the understudy, and ends the context if it dies. A mount replays the log of
// XFS, or reads the block groups of btrfs: minutes, on large and slow disks.
var limits = map[string]time.Duration{
	stepDisk: 2 * time.Minute, stepLayers: 5 * time.Minute, stepMount: 15 * time.Minute, stepNames: 10 * time.Minute,
	stepServices: 2 * time.Minute, StepAddress: time.Minute,
}

// readyWithin is how long the services may take to be ready: those that are not by then do not
// keep the others from their clients.
const readyWithin = 90 * time.Second

// The steps that have limits, as the timeline names them.
const (
	stepDisk     = "disk"
	stepLayers   = "layers" // the disk, and what lies on it: a key may take long on purpose
	stepMount    = "mount"
	stepNames    = "names"
	stepServices = "services"
	StepAddress  = "address" // with its end the service is reached again
)

// Run takes over. The timeline has the detection in it already. If ctx ends, the step
// under way fails, and the takeover with it: what Options.Record was told last says how
// to go on. The clients are being told when Run returns, and have been when
// Serving.Settle does.
func Run(ctx context.Context, m Machine, t *Timeline, o Options) (_ *Serving, err error) {
	r := &run{machine: m, options: o, report: &Report{Timeline: t, Commits: []Commit{}, Refused: []Refusal{}}}
	r.teller = newTeller(r)
	if err := t.Measure("fence", func() error { return m.Fence(ctx) }); err != nil {
		return nil, err
	}
	if o.Fenced != nil {
		o.Fenced()
	}
	defer func() {
		if err != nil { // nobody may read the dead memory when this has returned
			r.teller.once.Do(func() { close(r.teller.read) })
			<-r.teller.read
		}
	}()
	for _, d := range o.Disks {
		if err := r.disk(ctx, d); err != nil {
			return nil, fmt.Errorf("take over disk %s: %w", d, err)
		}
	}
	r.teller.meet(ctx) // of a pair without disks
	if o.SyncFirst {
		if err := r.sync(ctx); err != nil {
			return nil, err
		}
	}
	if err := r.limited(ctx, stepServices, func(ctx context.Context) (err error) {
		r.report.Unready, err = m.Start(ctx, readyWithin)
		return err
	}); err != nil {
		return nil, &UnservedError{r.report, fmt.Errorf("start services: %w", err)}
	}
	switch err := r.limited(ctx, StepAddress, m.GoLive); {
	case errors.Is(err, ErrUnreached):
		r.report.Unreached = err.Error()
	case err != nil:
		return nil, &UnservedError{r.report, fmt.Errorf("bring address over: %w", err)}
	}
	r.teller.tell(ctx)
	return &Serving{Report: r.report, run: r}, nil
}

// ErrUnreached is why nobody reaches an understudy that serves.
var ErrUnreached = errors.New("the network does not reach the understudy yet")

// UnservedError is why nobody serves, though the disks have been brought over: what of the
// dead side's data is not on them stands in the report.
type UnservedError struct {
	Report *Report
	Err    error
}

func (e *UnservedError) Error() string { return e.Err.Error() }

func (e *UnservedError) Unwrap() error { return e.Err }

// Settle makes durable what the takeover applied, if it did not do so before it
// went live, and waits until the clients are told. The dead memory must be kept
// until it has succeeded, and be let go only when it has returned.
func (s *Serving) Settle(ctx context.Context) (err error) {
	if !s.Report.Durable {
		err = s.run.sync(ctx)
	}
	<-s.run.teller.told
	s.Report.Notified = s.run.teller.notified
	return err
}

type run struct {
	machine Machine
	options Options
	report  *Report
	staged  int64 // bytes of staging in use
	teller  *teller

	refusedBefore int // how much was refused before the disk that is brought over
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

// limited measures a step that the understudy must be done with within its limit.
func (r *run) limited(ctx context.Context, name string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limits[name], fmt.Errorf("not done within %v", limits[name]))
	defer cancel()
	err := r.measure(name, func() error { return f(ctx) })
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (r *run) refuse(what string, err error) {
	r.report.Refused = append(r.report.Refused, Refusal{What: what, Count: 1, Reason: err.Error()})
}
