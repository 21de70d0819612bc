// Package takeover is the state machine that makes an understudy the active
// side: fence, salvage, hand-over, services, address, in that order of safety.
//
// It sees the living side through Machine and the dead one through Salvager. A failure before the fence
// is proven leaves everything untouched. A failure or a refusal of the salvage leaves a file as an
// ordinary crash would, and is in the report.
package takeover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"understudy.dev/understudy/internal/live/wire"
)

// ErrInBetween says that a disk has only a part of what is to be written to it. Nothing can mount it or
// boot from it until the rest, which lies in a work directory, is written.
var ErrInBetween = errors.New("nothing can mount the disk until an interrupted commit to it is finished")

// Veil begins each sector of the data that replaces the superblock of such a disk.
const Veil = "understudy salvage apply was broken off while it wrote to this disk."

// Options are the choices of a takeover.
type Options struct {
	Disks []string
	// Layered are those of Disks whose file system only the understudy sees, since it does not lie on
	// the image itself.
	Layered  []string
	Salvager Salvager // nil: none, the unsaved data is given up
	Witness  Witness  // nil: none, and no client is told
	Notice   Notice   // of the clients whom Witness knows
	// SyncFirst makes what was applied durable before the services start.
	SyncFirst bool
	// StopIfRefused makes a takeover fail, before the understudy sees the disk, if the salvage of a
	// disk is refused as a whole.
	StopIfRefused bool
	// Record makes durable how far a disk has come, before the step that Progress names is taken, and
	// whether something of the disk was refused until then: in that case the dead memory has data that
	// is not brought to the disk. Record may be nil. If it fails, the takeover fails.
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
	// MoreRefused is how many more things were refused, whose reasons an answer had no room for.
	MoreRefused int `json:"more_refused,omitempty"`
	// Acts are what was done to names that operations in flight were changing, or that were missing
	// from the log of a file system whose log salvage does not finish.
	Acts     []wire.Act `json:"acts,omitempty"`
	MoreActs int        `json:"more_acts,omitempty"` // likewise
	// Unready are the services that did not come up in time.
	Unready []wire.Unready `json:"unready,omitempty"`
	// Unreached is why the network did not reach the understudy when it served; empty if it did.
	Unreached string    `json:"unreached,omitempty"`
	Durable   bool      `json:"durable"` // all that was applied is on the disks
	Notified  Notified  `json:"notified"`
	Timeline  *Timeline `json:"-"`
}

// Refusals is how many things were refused.
func (r *Report) Refusals() int { return len(r.Refused) + r.MoreRefused }

// Fit drops what does not fit into an answer with the report, and keeps only the number of it.
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
	// Given: as HandedOver, and nothing of the dead side's memory is to be brought to the disk.
	Given Progress = "given"
	// Applied: nothing more of the dead side's memory is to be brought to the disk: what is not on the
	// disk is in the understudy's memory, or was refused.
	Applied Progress = "applied"
)

// Serving is a takeover that has succeeded: the understudy serves. What it applied may not be durable
// yet, and the clients are still being told.
type Serving struct {
	*Report
	run *run
}

// limits are how long a step in the understudy may take. They only bound a hang: on a busy machine,
// under emulation, a step may take many times as long as usual. The writing of files and e2fsck(8),
// whose time grows with the file system, have no limit: the caller watches the understudy, and ends the
// context if it dies. A mount replays the log of XFS, or reads the block groups of btrfs, which takes
// minutes on large and slow disks.
var limits = map[string]time.Duration{
	stepDisk: 2 * time.Minute, stepLayers: 5 * time.Minute, stepMount: 15 * time.Minute, stepNames: 10 * time.Minute,
	stepServices: 2 * time.Minute, StepAddress: time.Minute,
}

// readyWithin is how long the services may take to be ready. Those that are not ready by then do not
// keep the others from their clients.
const readyWithin = 90 * time.Second

// The steps that have limits, as the timeline names them.
const (
	stepDisk     = "disk"
	stepLayers   = "layers" // the disk, and what lies on it: a key may take long on purpose
	stepMount    = "mount"
	stepNames    = "names"
	stepServices = "services"
	StepAddress  = "address" // when it ends, the service is reached again
)

// Run carries out a takeover. The timeline already has the detection in it. If ctx ends, the step under
// way fails, and the takeover with it: the last call of Options.Record says how to go on. When Run
// returns, the clients are still being told; when Serving.Settle returns, they have been.
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
	r.teller.meet(ctx) // for a pair without disks
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

// ErrUnreached says that the understudy serves, but clients do not reach it yet.
var ErrUnreached = errors.New("the network does not reach the understudy yet")

// UnservedError is why nobody serves, though the disks have been brought over. The report says which of
// the dead side's data is not on them.
type UnservedError struct {
	Report *Report
	Err    error
}

func (e *UnservedError) Error() string { return e.Err.Error() }

func (e *UnservedError) Unwrap() error { return e.Err }

// Settle makes durable what the takeover applied, if that was not done before it went live, and waits
// until the clients are told. The dead memory must be kept until Settle has succeeded, and must not be
// released before it has returned.
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

	refusedBefore int // how much was refused before the current disk
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

// limited runs a step that the understudy must complete within its limit, and measures it.
func (r *run) limited(ctx context.Context, name string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limits[name], fmt.Errorf("not done within %v", limits[name]))
	defer cancel()
	err := r.measure(name, func() error { return f(ctx) })
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// refuse reports what is not brought to a disk.
func (r *run) refuse(disk string, all ...Refusal) {
	for _, refused := range all {
		refused.Disk = disk
		r.report.Refused = append(r.report.Refused, refused)
	}
}
