// Package demo is the whole job in one run: a pair serves, its active kernel
// dies with file data in memory only, the understudy takes over, and every byte
// is compared with what the guest had said of it before it died.
package demo

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"understudy.dev/understudy/internal/lab/probe"
	"understudy.dev/understudy/internal/lab/workload"
	"understudy.dev/understudy/internal/live/liveness"
	"understudy.dev/understudy/internal/takeover"
)

// Options say what to run.
type Options struct {
	FS        string // ext4 or ext3, made with mkfs's defaults
	Seed      uint64
	MiB       int  // about how much is left unsaved; 0 means the default
	Patient   bool // do not take a minute of silence for a death
	NoSalvage bool // give the unsaved data up
	Hang      bool // die without a dying message
	Unfenced  bool // let another process hold the dead side's disk
	Contrast  bool // look at the disk as it was at the fence, too
	Writers   int  // how many go on working, in their own directory, until the kernel dies

	Kernel string    // directory of the guests' kernel, as of dirs.Kernel
	Log    io.Writer // for the operator
	Say    io.Writer // progress, for people
}

// servedLimit is how long new content may take to reach the client, once it is
// written or its server has taken over: long, for a busy machine.
const servedLimit = 3 * time.Minute

// Run plays the demo once. The report is valid if the error is nil; it says what did not
// hold.
func Run(ctx context.Context, o Options) (r *Report, err error) {
	s, err := o.newStage(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	active, _ := s.super.Sides()
	r = &Report{
		Kernel: active.Release, Accel: string(active.Accel), FS: o.FS, Seed: o.Seed,
		Refusals: []takeover.Refusal{}, Failures: []string{},
	}
	p := &play{stage: s, report: r}
	s.fenced = p.atFence
	return r, p.run(ctx)
}

// say prints what happens, with the seconds since the run began.
func (s *stage) say(format string, args ...any) {
	fmt.Fprintf(s.o.Say, "%5.1f s  "+format+"\n", append([]any{time.Since(s.began).Seconds()}, args...)...)
}

// play is one run under way.
type play struct {
	*stage
	report *Report
	log    *probe.Log
	served [sha256.Size]byte // what the client was served before the crash, unsaved
	fence  time.Time
	zero   time.Time // of the timeline

	copied string // the disk as it was at the fence
	keptAt time.Time
	kept   error
}

func (p *play) run(ctx context.Context) error {
	asking, cancelAsking := context.WithCancel(ctx)
	defer cancelAsking()
	p.log = probe.NewLog(0)
	asked := make(chan error, 1)
	if err := p.prepare(ctx); err != nil {
		return err
	}
	spec := probe.Spec{Address: serviceAddress + ":80", Path: "/" + workload.ProbePath, Dial: p.lab.Client.DialContext}
	if p.o.Patient {
		spec.Interval, spec.Timeout = 50*time.Millisecond, 2*time.Second
	}
	go func() { asked <- probe.Run(asking, spec, p.log) }()
	if err := p.write(ctx); err != nil {
		return err
	}
	err := p.crash(ctx)
	cancelAsking()
	if err = errors.Join(err, <-asked); err != nil || p.o.Unfenced {
		return err
	}
	return p.compare(ctx)
}

// crash is the death, the takeover, and the client's return to the service.
func (p *play) crash(ctx context.Context) error {
	if p.o.Unfenced {
		release, err := p.holdImage()
		if err != nil {
			return err
		}
		defer release()
	}
	v, err := p.die(ctx)
	if err != nil {
		return err
	}
	if p.o.Unfenced {
		return p.takeOverUnfenced(ctx, v)
	}
	if err := p.takeOver(ctx, v); err != nil {
		return err
	}
	return p.measureOutage(ctx)
}

func (p *play) spec() workload.Spec {
	s := workload.DefaultSpec(p.report.Seed)
	if p.o.MiB > 0 {
		bytes := int64(p.o.MiB) << 20
		s.Files, s.UnsavedBytes = max(1, int(int64(s.Files)*bytes/s.UnsavedBytes)), bytes
	}
	return s
}

func (p *play) call(ctx context.Context, verb string) error {
	return p.super.Call(ctx, verb, job{Dir: serveDir, Spec: p.spec(), Writers: p.o.Writers}, nil)
}

// prepare makes the guest create its files and record their hashes.
func (p *play) prepare(ctx context.Context) error {
	plan, err := workload.NewPlan(p.spec())
	if err != nil {
		return err
	}
	p.report.UnsavedBytes = plan.UnsavedBytes()
	p.say("the guest makes %d files, syncs, and sends out their hashes to be", plan.Files())
	p.say("it is told to save nothing by itself from now on: no dirty pages, and no transactions of its journal")
	return p.call(ctx, verbPrepare)
}

// write leaves data unsaved, and waits until the client was served some of it.
func (p *play) write(ctx context.Context) error {
	old, err := p.log.Await(ctx, func(a probe.Answer) bool { return a.Class == probe.OK })
	if err != nil {
		return err
	}
	mac, err := p.clientSees()
	if err != nil {
		return err
	}
	p.report.MAC = mac
	began := time.Now()
	if err := p.call(ctx, verbRun); err != nil {
		return err
	}
	// An answer from the time of the write may mix a page of the old content with one of the new.
	written := time.Now()
	limited, cancel := context.WithTimeoutCause(ctx, servedLimit, errors.New("the client was not served the new content"))
	defer cancel()
	fresh, err := p.log.Await(limited, func(a probe.Answer) bool {
		return a.Class == probe.OK && a.SHA256 != old.SHA256 && a.Start.After(written)
	})
	if err != nil {
		return fmt.Errorf("wait for unsaved content: %w", context.Cause(limited))
	}
	p.served = fresh.SHA256
	took := time.Since(began)
	p.report.WriteMS = took.Seconds() * 1000
	p.say("it wrote %s over %d files in %.1f s and saved none of it; the client is served the new content",
		mib(p.report.UnsavedBytes), p.spec().Files, took.Seconds())
	if p.o.Writers == 0 {
		return nil
	}
	p.say("%d writers go on making, renaming, linking and removing files", p.o.Writers)
	return p.call(ctx, verbBusy)
}

// die kills the kernel and returns the verdict on it.
func (p *play) die(ctx context.Context) (liveness.Verdict, error) {
	type found struct {
		liveness.Verdict
		err error
	}
	watched := make(chan found, 1)
	go func() {
		d, err := p.super.Watch(ctx)
		if err == nil && d.Understudy {
			err = fmt.Errorf("the understudy died: %s", d.Verdict)
		}
		watched <- found{d.Verdict, err}
	}()
	if p.o.Hang {
		p.say("now all CPUs of the active side stop, without a dying message")
	} else {
		p.say("now its kernel panics")
	}
	if err := p.super.Crash(p.o.Hang); err != nil {
		return liveness.Verdict{}, err
	}
	v := <-watched
	p.report.Verdict = v.String()
	return v.Verdict, v.err
}

// takeOver takes over and adds the takeover's report to the demo's.
func (p *play) takeOver(ctx context.Context, v liveness.Verdict) error {
	report, err := p.super.TakeOver(ctx, v)
	if err != nil {
		return err
	}
	p.report.Files, p.report.BytesRecovered, p.report.Refusals = report.Files, report.Bytes, report.Refused
	p.report.Notified = report.Notified
	for _, c := range report.Commits {
		p.report.Files, p.report.BytesRecovered = p.report.Files+c.Files, p.report.BytesRecovered+c.Data
		p.report.Commits = append(p.report.Commits, c)
		p.report.Checked = p.report.Checked || c.Check != ""
		p.report.InFlight += c.Open
	}
	p.report.Refused = report.Refusals()
	if p.o.Contrast {
		report.Timeline.Add("(copy disk)", p.fence, p.keptAt)
	}
	p.report.Steps, p.zero = report.Timeline.Steps(), report.Timeline.Zero()
	if p.report.Flushes, err = p.super.Flushes(ctx, p.pair.Disks[0].Name); err != nil {
		return err
	}
	if p.report.Flushes == 0 {
		p.report.fail("the understudy never flushed its disk")
	}
	return p.kept
}

// measureOutage waits for the client's first good answer. Good means unsaved at the
// crash, so without salvage there is none, and any answer has to do.
func (p *play) measureOutage(ctx context.Context) error {
	good := probe.Want(p.served)
	if p.o.NoSalvage {
		good = func(a probe.Answer) bool { return a.Class == probe.OK }
	}
	limited, cancel := context.WithTimeout(ctx, servedLimit)
	defer cancel()
	if _, err := p.log.Await(limited, func(a probe.Answer) bool { return a.Start.After(p.fence) && good(a) }); err != nil {
		answers, _ := p.log.Answers()
		had := probe.Tally(slices.DeleteFunc(answers, func(a probe.Answer) bool { return a.Start.Before(p.fence) }), good)
		p.report.fail("the client had no good answer within %v of the takeover: of %d, %d had wrong content, and of errors %v",
			servedLimit, had.Total, had.WrongBody, had.Errors)
		return nil
	}
	answers, _ := p.log.Answers()
	gap, err := probe.Outage(answers, good, p.fence)
	if err != nil {
		return err
	}
	ms := float64(gap.Duration.Microseconds()) / 1000
	p.report.OutageMS = &ms
	p.report.ServedMS = float64(gap.First.End.Sub(p.zero).Microseconds()) / 1000
	mac, err := p.clientSees()
	if err != nil {
		return err
	}
	if mac != p.report.MAC {
		p.report.fail("the client saw %s at MAC %s, and now at %s", serviceAddress, p.report.MAC, mac)
	}
	return nil
}

// clientSees returns the MAC of the service's address in the client's neighbour table.
func (p *play) clientSees() (string, error) {
	mac, err := p.lab.Client.Neighbor(netip.MustParseAddr(serviceAddress))
	return mac.String(), err
}

// compare makes both guests report what they find, then reads the truth, for the first
// time, and compares the files with it.
func (p *play) compare(ctx context.Context) error {
	p.say("compare every file with what the guest had said of it")
	var lost []workload.Truth
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.call(gctx, verbDigest) })
	if p.o.Contrast {
		p.say("for the contrast a second guest mounts the disk as it was at the fence")
		g.Go(func() (err error) {
			lost, err = p.contrast(gctx)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	truth, err := p.read(p.pair.Partitions[0].Name, noticeTruth)
	if err != nil {
		return err
	}
	got, err := p.read(p.pair.Partitions[1].Name, noticeFound)
	if err != nil {
		return err
	}
	p.report.compare(truth, got, p.o.NoSalvage)
	if p.o.Contrast {
		p.judge(truth, lost)
	}
	return nil
}
