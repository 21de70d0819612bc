// Package takeover is the state machine that makes an understudy the active
// side: fence, salvage, hand-over, services, address, in that order of safety.
//
// It sees the living column through Machine and the dead one through Salvager.
// Whatever fails before the fence is proven leaves everything untouched;
// whatever of the salvage fails or is refused leaves a file as an ordinary
// crash would, and stands in the report.
package takeover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy.dev/understudy/internal/live/wire"
)

// Machine is what a takeover does to the running side and its devices.
type Machine interface {
	// Fence proves that the dead side cannot write. Nothing else is called
	// if it fails.
	Fence(ctx context.Context) error
	// Image is the fenced image of a disk, until its HandOver. Of a disk of Options.Layered
	// it is what the understudy sees, from HandOver until Mount.
	Image(ctx context.Context, disk string) (Image, error)
	// Check checks and repairs the file system of a fenced disk, before its HandOver: on a
	// draft, so that an error leaves the disk as it was, unless it is one of writing to it. With
	// errors.ErrUnsupported it cannot be done here: the understudy does it (Mount).
	Check(ctx context.Context, disk string) (*wire.Check, error)
	// HandOver gives a fenced disk to the understudy, which activates what lies under its file
	// system.
	HandOver(ctx context.Context, disk string) error
	// Mount has the understudy mount a disk that it was handed; with check, after
	// its file system was checked and repaired. found is what that said, else nil.
	Mount(ctx context.Context, disk string, check bool) (found *wire.Check, err error)
	// Name has the understudy give what a check has left without its name the one
	// that it had.
	Name(ctx context.Context, r wire.NameRequest) (wire.NameResult, error)
	// Staging is memory that the understudy can read and nobody else uses. Its first n
	// bytes are there to be written; it fails if there is no room for them.
	Staging(n int64) ([]byte, error)
	// Apply has the understudy write a plan whose encoding and data are in
	// Staging.
	Apply(ctx context.Context, r wire.ApplyRequest) (wire.ApplyResult, error)
	// Start starts the services of the role, and names those that are not ready within a time.
	// It fails if it is better not to go live without them.
	Start(ctx context.Context, within time.Duration) ([]wire.Unready, error)
	// GoLive lets the network reach the understudy. With ErrUnreached it serves, and will be
	// reached later.
	GoLive(ctx context.Context) error
	// Acquaint has the understudy know the dead side's peers; it tells them nothing.
	Acquaint(ctx context.Context, p wire.Peers) (wire.AcquaintResult, error)
	// Announce has the understudy say to the network where its address is now.
	Announce(ctx context.Context) error
	// Tell has the understudy tell those peers that their connections are gone,
	// at a rate a second.
	Tell(ctx context.Context, rate int) (wire.TellResult, error)
	// Sync makes what was applied durable.
	Sync(ctx context.Context) error
}

// Image is a disk that nobody else writes. Sync makes durable what was written.
type Image interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
}

// written remembers that a write to an image failed.
type written struct {
	Image
	failed error
}

func (w *written) WriteAt(b []byte, off int64) (int, error) {
	n, err := w.Image.WriteAt(b, off)
	w.failed = cmp.Or(w.failed, err)
	return n, err
}

func (w *written) Sync() error {
	err := w.Image.Sync()
	w.failed = cmp.Or(w.failed, err)
	return err
}

// stretchImage is an Image that takes many stretches at once (device.Direct).
type stretchImage interface {
	Image
	WriteStretches(n int, at func(int) (off int64, data [][]byte)) error
}

// writtenStretches is written of a stretchImage.
type writtenStretches struct {
	*written
	image stretchImage
}

func (w writtenStretches) WriteStretches(n int, at func(int) (off int64, data [][]byte)) error {
	err := w.image.WriteStretches(n, at)
	w.failed = cmp.Or(w.failed, err)
	return err
}

// watched is an image that can do what the given one can, and who remembers what failed.
func watched(image Image) (Image, *written) {
	w := &written{Image: image}
	if s, ok := image.(stretchImage); ok {
		return writtenStretches{w, s}, w
	}
	return w, w
}

// Salvager reads the dead side's memory.
type Salvager interface {
	// Examine finds the file system of an image in the dead memory, and
	// checks that the image is as that kernel left it.
	Examine(image Image) (Remains, error)
}

// Remains are one file system's unsaved files in the dead memory.
type Remains interface {
	// Finish writes to the image what must be there before anything mounts it:
	// the dead kernel's last commit. If it fails, the file system is what an
	// ordinary crash leaves, or has all of the commit in its log; nothing else is
	// written then, since a file would get a part of what it was to be.
	Finish(image Image) (Commit, error)
	// Size is how many bytes of staging Gather fills at most. It is good after Finish.
	Size() int64
	// Gather puts the unsaved bytes into staging and says whose they are.
	Gather(staging []byte) (Gathered, error)
	// Names is what the dead kernel had as the names of what a check has found
	// without, or with too many.
	Names(found *wire.Check) wire.NameRequest
}

// Commit is what Finish did.
type Commit struct {
	Disk     string `json:"disk"`
	Case     string `json:"case"`     // how log and memory fitted together
	Sequence uint32 `json:"sequence"` // of the transaction; 0 if there was nothing to commit
	Blocks   int    `json:"blocks"`   // of metadata in it
	Revoked  int    `json:"revoked"`  // blocks whose older versions it revokes
	Data     int64  `json:"data"`     // bytes of files that went to their places
	Files    int    `json:"files"`    // complete with that
	Replayed int    `json:"replayed"` // blocks that the replay of the log wrote
	// Placed are files that had no place on the disk for what was unsaved, and got one, and
	// PlacedBytes what was written of them. Unplaced says why the others have none, if there
	// are others: they are written after the mount.
	Placed      int    `json:"placed"`
	PlacedBytes int64  `json:"placed_bytes"`
	Unplaced    string `json:"unplaced,omitempty"`
	// Open is how many handles were open, and Proven that the audit found what their
	// operations had done so far to be sound.
	Open   int  `json:"open"`
	Proven bool `json:"proven"`
	// Mended is what of them was completed, or taken back, for that.
	Mended []string `json:"mended,omitempty"`
	// Moved are files whose extent trees were mid-update: the check might lose blocks of
	// theirs, which are written again from memory. Cut are files that were being
	// truncated: that is finished after the check, which would harm them.
	Moved int `json:"moved,omitempty"`
	Cut   int `json:"cut,omitempty"`
	// Check says why e2fsck had to run before the mount, and Found what it printed; both
	// are empty if it did not.
	Check string `json:"check,omitempty"`
	Found string `json:"found,omitempty"`
	// Shared says why the mount waits until it has seen that no other machine has the file
	// system (mmp); empty if it does not.
	Shared string `json:"shared,omitempty"`

	Steps []wire.PhaseTime `json:"-"`
}

func (c *Commit) String() string {
	s := fmt.Sprintf("last commit: %s", c.Case)
	if c.Blocks > 0 {
		s += fmt.Sprintf(", %d blocks as transaction %d", c.Blocks, c.Sequence)
	}
	if c.Data > 0 {
		s += fmt.Sprintf("; %.1f MiB of files to their places", float64(c.Data)/(1<<20))
	}
	if c.Placed > 0 {
		s += fmt.Sprintf("; %d files got their places", c.Placed)
	}
	if c.Unplaced != "" {
		s += "; after the mount: " + c.Unplaced
	}
	if c.Proven && c.Open > 0 {
		s += fmt.Sprintf("; %d operations in flight, %d things completed or taken back", c.Open, len(c.Mended))
	}
	if c.Check != "" {
		s += "; checked before the mount: " + c.Check
	}
	if c.Shared != "" {
		s += "; the mount waits for another machine's sign (mmp): " + c.Shared
	}
	if c.Moved > 0 {
		s += fmt.Sprintf("; %d files whose extent trees were mid-update are restored from memory", c.Moved)
	}
	if c.Cut > 0 {
		s += fmt.Sprintf("; the truncation of %d files is finished after the check", c.Cut)
	}
	return s
}

// Gathered is what Gather found.
type Gathered struct {
	Files   []wire.File
	Attrs   []wire.Attr // what else there is to them, where no log is finished
	Used    int64       // bytes of staging
	Bytes   int64       // unsaved bytes in it
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
	// names is taken; it may be nil. If it fails, the takeover does.
	Record func(disk string, p Progress) error
	// Fenced is called once the fence stands, before anything is handed over.
	Fenced func()
}

// Report tells what a takeover did.
type Report struct {
	Files   int       `json:"files"`
	Bytes   int64     `json:"bytes_recovered"`
	Commits []Commit  `json:"commits"`
	Refused []Refusal `json:"refused"`
	// Acts are what was done to names that operations in flight were changing, or that a log
	// which nobody finishes did not have.
	Acts []wire.Act `json:"acts,omitempty"`
	// Unready are the services that did not come up in time.
	Unready []wire.Unready `json:"unready,omitempty"`
	// Unreached is why the network did not reach the understudy when it served; empty: it did.
	Unreached string    `json:"unreached,omitempty"`
	Durable   bool      `json:"durable"` // all that was applied is on the disks
	Notified  Notified  `json:"notified"`
	Timeline  *Timeline `json:"-"`
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
var ErrUnreached = errors.New("the network does not reach it yet")

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
}

// disk brings one disk over. The last commit is finished before anybody mounts
// it; the dead memory is gathered while the understudy does.
func (r *run) disk(ctx context.Context, disk string) error {
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
		why := r.report.Refused[len(r.report.Refused)-1]
		return fmt.Errorf("%s: %s (takeover: {refused: serve} would go on without what is unsaved)", why.What, why.Reason)
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
		if err := r.measure("apply", func() error { return r.apply(ctx, request, named) }); err != nil {
			return err
		}
	}
	return r.record(disk, Applied)
}

// bring has the understudy mount a disk, once its file system was checked if it must be. One with
// layers it has already, and checks itself.
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
	if err := r.options.Record(disk, p); err != nil {
		return fmt.Errorf("record that it is %s: %w", p, err)
	}
	return nil
}

// examine also finishes the last commit. It gives nil if there is nothing to
// gather; why stands in the report. The error is that of a disk that takes no writes: what
// is unsaved waits in the dead memory until that is mended, and nobody mounts the disk.
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
	if err != nil {
		r.refuse("disk "+disk, err)
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
	if writes.failed != nil { // also one behind the commit: the understudy could not replay it either
		return nil, commit, fmt.Errorf("write the last commit of disk %s: %w", disk, writes.failed)
	}
	if err != nil {
		r.refuse("last commit of disk "+disk, err)
		return nil, commit, nil
	}
	return remains, commit, nil
}

// gather gives an empty request if nothing is to be applied.
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
		r.refuse("disk "+disk, err)
		return wire.ApplyRequest{}
	}
	return request
}

// stage lays the gathered data on the staging disk and its plan behind it.
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
	r.report.Refused = append(r.report.Refused, found.Refused...)
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

// stageList lays a list behind what is staged, and says where.
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

// name has operations on names that were in flight undone. What it cannot do is in the
// report.
func (r *run) name(ctx context.Context, disk string, found *wire.Check, remains Remains) (wire.NameResult, error) {
	request := remains.Names(found)
	request.Disk = disk
	result, err := r.machine.Name(ctx, request)
	for _, f := range result.Failures {
		r.refuse(fmt.Sprintf("inode %d generation %d", f.Inode, f.Generation), errors.New(f.Reason))
	}
	r.report.Acts = append(r.report.Acts, result.Acts...)
	return result, err
}

// apply counts what the understudy wrote. A file that it could not write is in
// the report, unless an operation in flight removed it; a takeover goes on without it.
func (r *run) apply(ctx context.Context, request wire.ApplyRequest, named wire.NameResult) error {
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
	for _, f := range named.Left(result.Failures) {
		r.refuse(fmt.Sprintf("inode %d generation %d", f.Inode, f.Generation), errors.New(f.Reason))
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

// align rounds up to a page, so that a plan begins on a sector.
func align(n int64) int64 { return (n + 4095) &^ 4095 }
